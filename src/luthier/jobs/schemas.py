"""What the job services hand out: frozen values, never rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from luthier.billing.pricing import Quote
from luthier.jobs.states import State
from luthier.protocol.spec import Hyperparameters

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class JobView:
    """One job. ``why`` says in one sentence what is going on, or what the job waits for and the way out.

    ``price_nanos`` is the quote, ``charged_nanos`` the price in the end. ``queue_depth`` counts the jobs
    ahead (0: next) and is None unless the job is queued.
    """

    id: str
    project_id: str
    api_key_id: str
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None

    state: State
    why: str
    queue_depth: int | None

    base_model: str
    training_file_id: str
    training_file_bytes: int
    training_file_lines: int | None
    validation_file_id: str | None
    output_name: str
    suffix: str | None
    hyperparameters: Hyperparameters
    request: Mapping[str, object]

    train_tokens: int | None
    validation_tokens: int | None
    billed_tokens: int | None
    rate_nanos: int | None
    price_nanos: int | None
    charged_nanos: int | None
    price_version: str | None
    currency: str | None

    step: int
    total_steps: int | None
    epochs_completed: int
    tokens_done: int
    param_count: int | None
    trainable_param_count: int | None
    seconds_remaining: float | None
    heard_at: datetime | None

    error_kind: str | None
    error_message: str | None

    @property
    def total_price_nanos(self) -> int | None:
        """The price that a dialect shows: what was charged once the job is over, the quote before that."""
        return self.price_nanos if self.charged_nanos is None else self.charged_nanos


@dataclass(frozen=True, kw_only=True)
class EventView:
    """One line of a job's log. ``data`` holds the API's other event fields that have a value."""

    seq: int
    created_at: datetime
    type: str
    level: Level
    message: str
    step: int | None
    data: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class MetricView:
    """Numbers of one step or one evaluation. ``seq`` is given when the metric is kept."""

    logged_at: datetime
    kind: Literal["train", "eval"]
    step: int
    epoch: float
    loss: float
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens: int = 0
    step_s: float = 0.0
    seq: int = 0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that a supervisor holds under ``token``: all that it needs to start, follow or end its worker.

    The tokenizations are keys of ``billing.quotes``. ``journal_offset`` is where ingesting goes on.
    """

    job_id: str
    token: int
    project_id: str
    state: State
    created_at: datetime
    started_at: datetime
    cancel_requested_at: datetime | None
    base_model: str
    base_model_revision: str | None
    hyperparameters: Hyperparameters
    training_file_id: str
    validation_file_id: str | None
    train_tokenization: str
    validation_tokenization: str | None
    output_name: str
    journal_offset: int
    step: int
    total_steps: int | None
    tokens_done: int
    heard_at: datetime | None


UnavailableReason = Literal[
    "train_file_not_validated", "eval_file_not_validated", "train_file_invalid", "eval_file_invalid"
]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A price, or why there is none.

    ready: ``quote`` is there. waiting: ``message`` says for what; ask again. impossible: ``message`` says
    why. ``reason`` is the wire's word for it, when it has one.
    """

    status: Literal["ready", "waiting", "impossible"]
    quote: Quote | None = None
    message: str | None = None
    hint: str | None = None
    reason: UnavailableReason | None = None


@dataclass(frozen=True, kw_only=True)
class ProgressUpdate:
    """What a worker said since last time; None leaves a value as it is.

    ``journal_offset`` is where reading goes on, and never goes back. ``heard_at`` is when the worker
    last said anything.
    """

    journal_offset: int | None = None
    step: int | None = None
    total_steps: int | None = None
    epochs_completed: int | None = None
    tokens_done: int | None = None
    seconds_remaining: float | None = None
    param_count: int | None = None
    trainable_param_count: int | None = None
    heard_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended. ``message`` and ``hint`` are for error and user_error: one sentence each, said plainly.

    ``error_kind`` is the journal's word (``protocol.journal.Failed.kind``) or the supervisor's own.
    ``data`` goes into the last event.
    """

    state: Literal["completed", "cancelled", "user_error", "error"]
    message: str | None = None
    hint: str | None = None
    error_kind: str | None = None
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SupervisorView:
    """A supervisor that was heard of lately."""

    id: str
    host: str
    pid: int
    slots: int
    started_at: datetime
    seen_at: datetime
