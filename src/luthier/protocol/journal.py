"""The journal: what a worker says, one JSON message a line, append-only, fsynced where it must last.

A reader may be killed and start again from any byte offset that ``read`` returned; a torn last
line is left for the next read. Messages are numbered by their position, so ingesting any prefix
any number of times gives the same rows.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_READ_BYTES = 16 * 1024 * 1024


class _Message(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    at: float = msgspec.field(default_factory=time.time)  # seconds since 1970, UTC


class Started(_Message, frozen=True, tag="started"):
    """The worker is alive and has read its spec."""

    pid: int
    device: str
    precision: str
    threads: int
    versions: dict[str, str]


class ModelLoaded(_Message, frozen=True, tag="model_loaded"):
    """Weights are in memory; parameters are counted."""

    param_count: int
    trainable_param_count: int


class TrainingStarted(_Message, frozen=True, tag="training_started"):
    """The first step begins. ``train_tokens`` are those of one epoch."""

    total_steps: int
    steps_per_epoch: int
    train_tokens: int
    resumed_step: int = 0


class Metric(_Message, frozen=True, tag="metric"):
    """Numbers of one optimizer step (``train``) or one evaluation (``eval``).

    ``tokens`` is the count of trained-on sequence tokens that the step consumed, padding excluded.
    """

    kind: Literal["train", "eval"]
    step: int
    epoch: float
    loss: float
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens: int = 0
    step_s: float = 0.0
    seconds_remaining: float | None = None


class Working(_Message, frozen=True, tag="working"):
    """A sign of life from inside a long step or evaluation: ``tokens`` of it are computed."""

    step: int
    tokens: int


class EpochComplete(_Message, frozen=True, tag="epoch_complete"):
    """All rows of epoch number ``epoch`` (from 1) were seen."""

    epoch: int
    step: int


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a checkpoint or an archive: path relative to the run directory."""

    path: str
    size_bytes: int
    sha256: str


class CheckpointSaved(_Message, frozen=True, tag="checkpoint"):
    """A complete, fsynced, intermediate checkpoint: an archive of loadable weights."""

    step: int
    kind: Literal["adapter", "model"]
    archive: FileEntry  # .tar.zst under checkpoints/
    eval_loss: float | None = None


class Exporting(_Message, frozen=True, tag="exporting"):
    """Training is over; outputs are being written and compressed."""

    step: int


class Exported(_Message, frozen=True, tag="exported"):
    """One complete output archive (.tar.zst under output/). ``model``: full weights; ``merged``: base + adapter."""

    kind: Literal["adapter", "merged", "model"]
    step: int
    archive: FileEntry
    weights_sha256: str  # of the safetensors bytes, file by file in name order


class Notice(_Message, frozen=True, tag="notice"):
    """Something that the user should know, and that does not stop the job."""

    message: str
    step: int | None = None


class Finished(_Message, frozen=True, tag="finished"):
    """The last message of a run that did its work. ``stopped``: on request, after ``step``."""

    step: int
    epochs_completed: int
    stopped: bool = False


class Failed(_Message, frozen=True, tag="failed"):
    """The last message of a run that could not. ``kind`` says whose turn it is.

    data, hyperparameters: the inputs are at fault. out_of_memory, non_finite_loss, disk,
    base_model, platform: ours, or the machine's.
    """

    kind: Literal[
        "data", "hyperparameters", "out_of_memory", "non_finite_loss", "disk", "base_model", "lease_lost", "platform"
    ]
    message: str
    hint: str | None = None
    step: int | None = None
    traceback: str | None = None


Message = (
    Started
    | ModelLoaded
    | TrainingStarted
    | Metric
    | Working
    | EpochComplete
    | CheckpointSaved
    | Exporting
    | Exported
    | Notice
    | Finished
    | Failed
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class JournalCorrupt(Exception):
    """A complete line is not a message; names the byte offset."""


class JournalWriter:
    """Appends messages. One writer at a time; a torn tail left by a dead one is cut off first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        _cut_torn_tail(self._fd)

    def write(self, message: Message, *, durable: bool = False) -> None:
        """Append one line in one write; ``durable`` fsyncs it (a failed fsync raises OSError: end the process).

        Raises OSError when the disk is full; the journal is then as it was.
        """
        line = _encoder.encode(message) + b"\n"
        assert len(line) <= MAX_LINE_BYTES, f"journal line of {len(line)} bytes"
        written = os.write(self._fd, line)
        if written < len(line):  # the rest did not fit; a torn line must not stand before the next one
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {written} of {len(line)} bytes written")
        if durable:
            os.fsync(self._fd)

    def close(self) -> None:
        """Fsync and close."""
        os.fsync(self._fd)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _cut_torn_tail(fd: int) -> None:
    size = os.fstat(fd).st_size
    tail_start = max(0, size - MAX_LINE_BYTES)
    tail = os.pread(fd, size - tail_start, tail_start)
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(fd, tail_start + tail.rfind(b"\n") + 1)


def read(path: Path, offset: int = 0) -> tuple[list[tuple[int, Message]], int]:
    """Return the complete messages from byte ``offset`` on, each with its own offset, and where to go on.

    At most ``MAX_READ_BYTES`` a call. A missing journal reads as empty. Raises JournalCorrupt for
    a complete line that is not a message.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            block = file.read(MAX_READ_BYTES)
    except FileNotFoundError:
        return [], offset
    messages: list[tuple[int, Message]] = []
    end = block.rfind(b"\n") + 1
    for line in block[:end].splitlines(keepends=True):
        try:
            messages.append((offset, _decoder.decode(line)))
        except msgspec.MsgspecError as error:
            if messages:
                break  # what came before is good: the next read begins at the bad line and raises
            msg = f"{path}: byte {offset}: {error}"
            raise JournalCorrupt(msg) from error
        offset += len(line)
    return messages, offset
