"""From journal to rows: which stretch can be written now, and what each message becomes. Pure, but for ``write``.

The last message (finished, failed) is never consumed: it stays at the head of what is unread until the
job is settled, so that a supervisor which dies before that finds it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from luthier import faults
from luthier.artifacts import service as artifacts
from luthier.db import Session
from luthier.jobs import log, progress, queue
from luthier.jobs.schemas import Claim, Level, MetricView, ProgressUpdate
from luthier.jobs.states import State
from luthier.protocol import journal
from luthier.protocol.journal import JournalCorrupt, Message
from luthier.supervisor.archives import Archive

NUMBER_MAX = 2**53  # what JSON readers agree on; a worker that counts further is broken
TEXT_MAX_CHARS = 2000


@dataclass(frozen=True)
class Stretch:
    """What can be done with the unread messages now. Nothing to do and no ending: wait for more."""

    messages: Sequence[Message] = ()  # to be written, up to the offset ``end``
    end: int = 0
    wanted: Sequence[Archive] = ()  # to be in the store before the message behind ``end`` is written
    begins_upload: bool = False  # every output is announced; the job moves on before they are stored
    ending: journal.Finished | journal.Failed | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be written or stored."""
        return not (self.messages or self.wanted or self.begins_upload)


@dataclass(frozen=True)
class Event:
    """One line for the job's log."""

    type: str
    message: str
    at: datetime
    level: Level = "info"
    step: int | None = None
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """A move along the table of states, told by its event."""

    state: State
    event_type: str
    message: str


@dataclass(frozen=True)
class Artifact:
    """An archive that is in the store."""

    kind: artifacts.Kind
    step: int
    is_final: bool
    archive: Archive
    weights_sha256: str | None


@dataclass(frozen=True)
class Batch:
    """The rows of one stretch, for one transaction."""

    update: ProgressUpdate
    metrics: Sequence[MetricView] = ()
    steps: Sequence[Event | Move | Artifact] = ()  # in this order


def cut(unread: Sequence[tuple[int, Message]], end: int, *, claim: Claim, kept: AbstractSet[Archive]) -> Stretch:
    """Return the stretch that can be written now; ``claim`` is the job as it is now, ``kept`` is in the store.

    Outputs are stored only once all of them are announced and the worker has finished: a job's output is
    complete or absent. A cancelled job has none.
    """
    messages = [message for _, message in unread]
    ending = next((message for message in messages if isinstance(message, journal.Finished | journal.Failed)), None)
    for index, (offset, message) in enumerate(unread):
        stop = Stretch(messages=messages[:index], end=offset, ending=ending)
        match message:
            case journal.Finished() | journal.Failed():
                return stop
            case journal.CheckpointSaved() if (archive := name_archive(claim.job_id, message)) not in kept:
                return replace(stop, wanted=[archive])
            case journal.Exported() if claim.state != "cancel_requested":
                if not isinstance(ending, journal.Finished):
                    return stop
                if claim.state == "compressing":
                    return replace(stop, begins_upload=True)
                outputs = [name_archive(claim.job_id, one) for one in messages if isinstance(one, journal.Exported)]
                if wanted := [output for output in outputs if output not in kept]:
                    return replace(stop, wanted=wanted)
            case _:
                pass
    return Stretch(messages=messages, end=end)


def name_archive(job_id: str, message: journal.CheckpointSaved | journal.Exported) -> Archive:
    """Return the announced archive with its place in the store."""
    is_final = isinstance(message, journal.Exported)
    key = artifacts.name_object(job_id, step=message.step, kind=message.kind, is_final=is_final)
    return Archive(key, message.archive)


def translate(stretch: Stretch, claim: Claim, *, now: datetime) -> Batch:
    """Return the rows of a stretch; ``claim`` is the job as it is now, its archives are in the store.

    Raises JournalCorrupt for a number that no worker of ours would write.
    """
    return _Translation(claim, now).run(stretch)


class _Translation:
    def __init__(self, claim: Claim, now: datetime) -> None:
        self.claim = claim
        self.now = now
        self.update = ProgressUpdate(heard_at=now)
        self.metrics: list[MetricView] = []
        self.steps: list[Event | Move | Artifact] = []

    def run(self, stretch: Stretch) -> Batch:
        for message in stretch.messages:
            _require_sane(message)
            self.take(message)
        self.close(stretch)
        return Batch(replace(self.update, journal_offset=stretch.end), self.metrics, self.steps)

    def take(self, message: Message) -> None:
        match message:
            case journal.ModelLoaded():
                self.note(param_count=message.param_count, trainable_param_count=message.trainable_param_count)
            case journal.TrainingStarted():
                self.note(total_steps=message.total_steps)
                data = {"total_steps": message.total_steps, "token_count": message.train_tokens}
                self.tell(message, "training_start", f"Training started for model {self.claim.base_model}", data=data)
            case journal.Metric():
                self.take_metric(message)
            case journal.EpochComplete():
                self.note(epochs_completed=message.epoch)
                self.tell(message, "epoch_complete", f"Epoch completed, at step {message.step}", step=message.step)
            case journal.CheckpointSaved():
                self.take_checkpoint(message)
            case journal.Exporting():
                self.tell(
                    message, "training_complete", f"Training completed, at step {message.step}", step=message.step
                )
                if self.claim.state == "running":
                    self.steps.append(Move("compressing", "model_compressing", "Compressing the output model"))
            case journal.Exported() if self.claim.state == "uploading":
                archive = name_archive(self.claim.job_id, message)
                self.steps.append(Artifact(message.kind, message.step, True, archive, message.weights_sha256))
            case journal.Notice():
                self.tell(message, "warning", message.message[:TEXT_MAX_CHARS], level="warning", step=message.step)
            case _:
                pass  # started, working: only that it was heard of

    def take_metric(self, metric: journal.Metric) -> None:
        self.metrics.append(
            MetricView(
                logged_at=self.date(metric),
                kind=metric.kind,
                step=metric.step,
                epoch=metric.epoch,
                loss=metric.loss,
                grad_norm=metric.grad_norm,
                learning_rate=metric.learning_rate,
                tokens=metric.tokens,
                step_s=metric.step_s,
            )
        )
        if metric.kind == "train":
            tokens_done = self.update.tokens_done if self.update.tokens_done is not None else self.claim.tokens_done
            self.note(step=metric.step, tokens_done=tokens_done + metric.tokens)
            if metric.seconds_remaining is not None:
                self.note(seconds_remaining=metric.seconds_remaining)
        else:
            message = f"Evaluation completed, at step {metric.step}: loss {metric.loss:.4f}"
            self.tell(metric, "eval_complete", message, step=metric.step, data={"eval_loss": metric.loss})

    def take_checkpoint(self, message: journal.CheckpointSaved) -> None:
        archive = name_archive(self.claim.job_id, message)
        self.steps.append(Artifact(message.kind, message.step, False, archive, None))
        text = f"Checkpoint saved, at step {message.step}"
        self.tell(message, "checkpoint_save", text, step=message.step, data={"checkpoint_path": archive.key})

    def close(self, stretch: Stretch) -> None:
        """Tell what the stretch as a whole brings about."""
        if stretch.begins_upload:
            self.steps.append(Event("model_compression_complete", "Output model compressed", self.now))
            message = f"Uploading the output model {self.claim.output_name}"
            self.steps.append(Move("uploading", "model_uploading", message))
        if any(isinstance(step, Artifact) and step.is_final for step in self.steps):
            message = f"Output model uploaded: {self.claim.output_name}"
            data = {"model_path": self.claim.output_name}
            self.steps.append(Event("model_upload_complete", message, self.now, data=data))

    def note(self, **values: float) -> None:
        self.update = replace(self.update, **values)  # type: ignore[arg-type]  # each caller names its own fields

    def tell(
        self,
        message: Message,
        type: str,
        text: str,
        *,
        level: Level = "info",
        step: int | None = None,
        data: Mapping[str, object] | None = None,
    ) -> None:
        self.steps.append(Event(type, text, self.date(message), level, step, data or {}))

    def date(self, message: Message) -> datetime:
        """Return when the message was written, by the worker's clock, but never outside the job's own life."""
        earliest, latest = self.claim.started_at.timestamp(), self.now.timestamp()
        return datetime.fromtimestamp(min(max(message.at, earliest), latest), UTC)


def follow(claim: Claim, batch: Batch) -> Claim:
    """Return the job as it is once the batch is written."""
    for step in batch.steps:
        if isinstance(step, Move):
            claim = replace(claim, state=step.state)
    if (tokens_done := batch.update.tokens_done) is not None:
        claim = replace(claim, tokens_done=tokens_done)
    offset = batch.update.journal_offset
    return claim if offset is None else replace(claim, journal_offset=offset)


def _require_sane(message: Message) -> None:
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(value, int) and not 0 <= value < NUMBER_MAX:
            raise JournalCorrupt(f"{type(message).__name__}: {name} is {value}")


def write(tx: Session, claim: Claim, batch: Batch, *, now: datetime) -> None:
    """Write the rows of one stretch, which follow from ``claim``. Raises LeaseLost, ClaimOutdated.

    So a job that is cancelled before its outputs are in the rows has none, and a stretch is kept once.
    """
    queue.require_current(tx, claim)
    progress.record(tx, claim.job_id, claim.token, batch.update, now=now)
    log.append_metrics(tx, claim.job_id, batch.metrics)
    for step in batch.steps:
        _write_step(tx, claim, step, now=now)
    faults.hit("ingest.before_commit")


def _write_step(tx: Session, claim: Claim, step: Event | Move | Artifact, *, now: datetime) -> None:
    match step:
        case Event():
            log.append(
                tx, claim.job_id, step.type, step.message, now=step.at, level=step.level, step=step.step, data=step.data
            )
        case Move():
            progress.move(tx, claim.job_id, claim.token, step.state, step.event_type, step.message, now=now)
        case Artifact():
            artifacts.record(
                tx,
                project_id=claim.project_id,
                job_id=claim.job_id,
                step=step.step,
                kind=step.kind,
                is_final=step.is_final,
                object_key=step.archive.key,
                size_bytes=step.archive.entry.size_bytes,
                sha256=step.archive.entry.sha256,
                weights_sha256=step.weights_sha256,
                now=now,
            )
