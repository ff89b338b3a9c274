"""Jobs, events, metrics and checkpoints as the Together dialect shows them. What is not known is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.api import hyperparameters
from luthier.api.hyperparameters import Scheduler, TrainingMethod, TrainingType
from luthier.api.times import Time
from luthier.api.together.dialect import Dialect, spell_event_type
from luthier.artifacts.service import ArtifactView
from luthier.jobs import states
from luthier.jobs.schemas import EventView, JobView, MetricView

EVENT_OBJECT: Literal["fine-tune-event"] = "fine-tune-event"

# Fields of an event that stand at its top level; whatever else its data holds stays under ``data``.
_EVENT_FIELDS = (
    "param_count", "token_count", "total_steps", "wandb_url", "checkpoint_path", "model_path", "training_offset",
)  # fmt: skip


class WireModel(BaseModel):
    """An answer. Its fields may begin with ``model_``: on this wire a model is an LLM."""

    model_config = ConfigDict(protected_namespaces=(), populate_by_name=True)


class Progress(WireModel):
    """When the job will be done: ``seconds_remaining`` counts from the job's ``started_at``.

    Every known client takes the time since ``started_at`` off before it shows the rest.
    """

    estimate_available: bool
    seconds_remaining: int


class Event(WireModel):
    """One line of a job's log; every field is always there, null when it has no value."""

    object: Literal["fine-tune-event"]
    created_at: Time
    level: Literal["info", "warning", "error"]
    message: str
    type: str
    param_count: int | None
    token_count: int | None
    total_steps: int | None
    wandb_url: str | None
    step: int | None
    checkpoint_path: str | None
    model_path: str | None
    training_offset: int | None
    hash: str
    data: dict[str, Any]


class Job(WireModel):
    """One fine-tuning job. ``total_price`` is in nano-dollars, 0 until the job is priced."""

    id: str
    job_id: str
    object: Literal["fine-tune"] = "fine-tune"
    status: states.State
    user_id: str
    created_at: Time
    updated_at: Time
    started_at: Time | None = None
    finished_at: Time | None = None
    why: str

    model: str
    model_output_name: str
    suffix: str | None = None
    training_file: str
    validation_file: str | None = None
    trainingfile_size: int
    trainingfile_numlines: int | None = None
    training_file_size: int = Field(alias="TrainingFileSize")
    training_file_num_lines: int | None = Field(default=None, alias="TrainingFileNumLines")

    n_epochs: int
    n_checkpoints: int
    n_evals: int
    batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    lr_scheduler: Scheduler
    warmup_ratio: float
    max_grad_norm: float
    weight_decay: float
    random_seed: int
    packing: bool
    max_seq_length: int
    training_type: TrainingType
    training_method: TrainingMethod
    train_on_inputs: bool | Literal["auto"]

    total_price: int
    token_count: int | None = None
    param_count: int | None = None
    steps_completed: int
    total_steps: int | None = None
    epochs_completed: int
    queue_depth: int | None = None
    progress: Progress
    events: list[Event] | None = None


class JobList(WireModel):
    """Jobs, oldest first."""

    object: Literal["list"] = "list"
    data: list[Job]


class EventList(WireModel):
    """Events, oldest first."""

    object: Literal["list"] = "list"
    data: list[Event]


class Checkpoint(WireModel):
    """An archive that can be downloaded."""

    step: int
    created_at: Time
    path: str
    checkpoint_type: str
    checkpoint: Literal["model", "adapter"]
    object_name: str
    size_bytes: int
    sha256: str


class CheckpointList(WireModel):
    """Checkpoints, oldest first."""

    object: Literal["list"] = "list"
    data: list[Checkpoint]


class MetricList(WireModel):
    """Metrics in the order in which they were logged, each a flat object of numbers."""

    metrics: list[dict[str, int | float]]


def describe_job(job: JobView, events: Sequence[Event] | None = None) -> Job:
    """Translate a job; without ``events`` the answer has no such field."""
    fields = {
        "id": job.id,
        "job_id": job.id,
        "object": "fine-tune",
        "status": job.state,
        "user_id": job.api_key_id,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "why": job.why,
        "model": job.base_model,
        "model_output_name": job.output_name,
        "suffix": job.suffix,
        "training_file": job.training_file_id,
        "validation_file": job.validation_file_id,
        "trainingfile_size": job.training_file_bytes,
        "trainingfile_numlines": job.training_file_lines,
        "TrainingFileSize": job.training_file_bytes,
        "TrainingFileNumLines": job.training_file_lines,
        **hyperparameters.describe(job.hyperparameters),
        "total_price": job.total_price_nanos or 0,
        "token_count": job.billed_tokens,
        "param_count": job.param_count,
        "steps_completed": job.step,
        "total_steps": job.total_steps,
        "epochs_completed": job.epochs_completed,
        "queue_depth": job.queue_depth,
        "progress": _describe_progress(job),
        "events": events,
    }
    return Job.model_validate({name: value for name, value in fields.items() if value is not None})


def _describe_progress(job: JobView) -> dict[str, Any]:
    known = job.state == "running" and job.seconds_remaining is not None
    if not known or job.started_at is None or job.heard_at is None:
        return {"estimate_available": False, "seconds_remaining": 0}
    until_heard_s = (job.heard_at - job.started_at).total_seconds()
    return {"estimate_available": True, "seconds_remaining": round(until_heard_s + (job.seconds_remaining or 0))}


def describe_event(job_id: str, event: EventView, dialect: Dialect = "v3") -> Event:
    """Translate an event."""
    known = {name: event.data.get(name) for name in _EVENT_FIELDS}
    return Event(
        object=EVENT_OBJECT,
        created_at=event.created_at,
        level=event.level,
        message=event.message,
        type=spell_event_type(event.type, dialect),
        step=event.step,
        hash=hashlib.sha256(f"{job_id}:{event.seq}".encode()).hexdigest(),
        data={name: value for name, value in event.data.items() if name not in _EVENT_FIELDS},
        **known,  # type: ignore[arg-type]  # JSON from our own database; pydantic checks it
    )


def describe_metrics(metrics: Iterable[MetricView]) -> list[dict[str, int | float]]:
    """Translate metrics. Every object has ``train/global_step``, which clients plot against."""
    return [_describe_metric(metric) for metric in metrics]


def _describe_metric(metric: MetricView) -> dict[str, int | float]:
    values: dict[str, int | float | None] = {
        "timestamp": to_nanoseconds(metric.logged_at),
        "train/global_step": metric.step,
        "train/epoch": metric.epoch,
        f"{metric.kind}/loss": metric.loss,
        f"{metric.kind}/grad_norm": metric.grad_norm,
        f"{metric.kind}/learning_rate": metric.learning_rate,
    }
    return {name: value for name, value in values.items() if value is not None}


def to_nanoseconds(moment: datetime) -> int:
    """Return a moment as whole nanoseconds since 1970."""
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def sample_metrics(metrics: Sequence[MetricView], resolution: int) -> list[MetricView]:
    """Keep at most ``resolution`` training metrics, evenly spread, the first and the last included; all evaluations."""
    steps = [metric for metric in metrics if metric.kind == "train"]
    if len(steps) <= resolution:
        return list(metrics)
    last = len(steps) - 1
    spread = max(resolution - 1, 1)
    kept = {steps[index * last // spread].seq for index in range(resolution)} if resolution > 1 else {steps[last].seq}
    return [metric for metric in metrics if metric.kind == "eval" or metric.seq in kept]


def describe_checkpoint(artifact: ArtifactView, output_name: str) -> Checkpoint:
    """Translate an archive: an intermediate checkpoint, or one of the job's outputs."""
    is_adapter = artifact.kind == "adapter"
    return Checkpoint(
        step=artifact.step,
        created_at=artifact.created_at,
        path=artifact.object_key,
        checkpoint_type=_name_checkpoint(artifact),
        checkpoint="adapter" if is_adapter else "model",
        object_name=_name_object(artifact, output_name),
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
    )


def _name_checkpoint(artifact: ArtifactView) -> str:
    if not artifact.is_final:
        return "Intermediate"
    return {"adapter": "Final Adapter", "merged": "Final Merged", "model": "Final"}[artifact.kind]


def _name_object(artifact: ArtifactView, output_name: str) -> str:
    parts = [output_name, *(["adapter"] if artifact.kind == "adapter" else [])]
    if not artifact.is_final:
        parts.append(str(artifact.step))
    return "-".join(parts)
