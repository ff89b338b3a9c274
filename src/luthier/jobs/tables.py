"""Tables of jobs, events and metrics, and of the supervisors that are alive."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from luthier.db import Base
from luthier.db.orm import Json, Nanos
from luthier.jobs import states


def _quote(names: frozenset[states.State] | tuple[states.State, ...]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


class Job(Base):
    """One fine-tuning job. ``state`` moves along ``jobs.states`` only, each move with one event."""

    __tablename__ = "jobs"
    __table_args__ = (
        sa.UniqueConstraint("output_name"),
        sa.CheckConstraint(f"state IN ({_quote(states.STATES)})", name="state"),
        sa.CheckConstraint(f"(lease_owner IS NOT NULL) = (state IN ({_quote(states.LEASED)}))", name="lease"),
        sa.CheckConstraint("charged_nanos BETWEEN 0 AND price_nanos OR charged_nanos = 0", name="charged"),
        sa.Index("ix_jobs_project_created", "project_id", "created_at", "id"),
        sa.Index("ix_jobs_state_created", "state", "created_at", "id"),
        {"sqlite_strict": True},
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    api_key_id: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    state: Mapped[str]
    waiting_for: Mapped[str | None]  # while pending: one clause that says for what
    base_model: Mapped[str]
    base_model_revision: Mapped[str | None]  # of the weights that were there when the job was priced
    training_file_id: Mapped[str]
    training_file_bytes: Mapped[int]
    training_file_lines: Mapped[int | None]  # known once the file is checked
    validation_file_id: Mapped[str | None]
    output_name: Mapped[str]
    suffix: Mapped[str | None]
    hyperparameters: Mapped[Any] = mapped_column(Json)  # protocol.spec.Hyperparameters
    request: Mapped[Any] = mapped_column(Json)  # what the caller sent, without secrets

    # Asked for once file and model are ready; priced once the counts are known:
    train_tokenization: Mapped[str | None]
    validation_tokenization: Mapped[str | None]
    train_tokens: Mapped[int | None]  # as billed, of one epoch
    validation_tokens: Mapped[int | None]  # as billed, of one evaluation
    billed_tokens: Mapped[int | None]
    rate_nanos: Mapped[int | None] = mapped_column(Nanos)  # a token
    price_nanos: Mapped[int | None] = mapped_column(Nanos)  # the quote: the price when the job runs to its end
    price_version: Mapped[str | None]  # of the price list that gave the rate
    currency: Mapped[str | None]
    charged_nanos: Mapped[int | None] = mapped_column(Nanos)  # the price in the end; set by the terminal move
    limit_deadline_at: Mapped[datetime | None]  # a lowered limit or balance no longer covers it: it ends then

    # The lease: who runs it, under which fencing token, until when.
    lease_owner: Mapped[str | None]
    lease_token: Mapped[int] = mapped_column(server_default=sa.text("0"))
    lease_expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]

    # What the worker said last:
    journal_offset: Mapped[int] = mapped_column(server_default=sa.text("0"))
    step: Mapped[int] = mapped_column(server_default=sa.text("0"))
    total_steps: Mapped[int | None]
    epochs_completed: Mapped[int] = mapped_column(server_default=sa.text("0"))
    param_count: Mapped[int | None]
    trainable_param_count: Mapped[int | None]
    seconds_remaining: Mapped[float | None]
    tokens_done: Mapped[int] = mapped_column(server_default=sa.text("0"))
    heard_at: Mapped[datetime | None]
    next_event: Mapped[int] = mapped_column(server_default=sa.text("1"))
    next_metric: Mapped[int] = mapped_column(server_default=sa.text("1"))

    error_kind: Mapped[str | None]
    error_message: Mapped[str | None]


class Event(Base):
    """One line of a job's log. ``seq`` counts from 1 in each job, without gaps."""

    __tablename__ = "events"
    __table_args__ = ({"sqlite_strict": True},)

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    type: Mapped[str]
    level: Mapped[str]
    message: Mapped[str]
    step: Mapped[int | None]
    data: Mapped[Any] = mapped_column(Json)  # the API's other event fields, when they have a value


class Metric(Base):
    """Numbers of one step or one evaluation. ``seq`` counts from 1 in each job."""

    __tablename__ = "metrics"
    __table_args__ = ({"sqlite_strict": True},)

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    logged_at: Mapped[datetime]
    kind: Mapped[str]  # train, eval
    step: Mapped[int]
    epoch: Mapped[float]
    loss: Mapped[float]
    grad_norm: Mapped[float | None]
    learning_rate: Mapped[float | None]
    tokens: Mapped[int]
    step_s: Mapped[float]


class Idempotency(Base):
    """The answer of a create that may be repeated: by the caller's key, or by the body for a short time."""

    __tablename__ = "idempotency"
    __table_args__ = ({"sqlite_strict": True},)

    api_key_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[str]
    job_id: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(index=True)
    delivered_at: Mapped[datetime | None]  # the answer left for the caller; null: it may have been lost


class Supervisor(Base):
    """A supervisor that is, or was, alive: so that the API can say why nothing moves."""

    __tablename__ = "supervisors"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    slots: Mapped[int]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
