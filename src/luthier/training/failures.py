"""Failures: which kinds there are, whose fault each one is, and how it is told.

DataFault               no row that can be trained on
HyperparametersFault    a setting that does not fit the base model
MemoryTooSmall          a model that cannot fit
BaseModelFault          weights that are missing, incomplete or of an unknown build
NonFiniteLoss           the loss is no number any more
"""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass

from luthier.protocol.journal import Failed

DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
TRACEBACK_MAX_CHARS = 20_000  # the end of it is what tells


@dataclass
class Progress:
    """The last step that was completed, for the message of a failure."""

    step: int = 0


class Fault(Exception):
    """A failure with a known cause; ``hint`` names the way out."""

    kind: str

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class DataFault(Fault):
    """The data holds nothing to train on."""

    kind = "data"


class HyperparametersFault(Fault):
    """A setting does not fit the base model."""

    kind = "hyperparameters"


class MemoryTooSmall(Fault):
    """The memory cannot hold what is to be trained."""

    kind = "out_of_memory"


class BaseModelFault(Fault):
    """The base model cannot be loaded as it is on this disk."""

    kind = "base_model"


class NonFiniteLoss(Fault):
    """The loss, or its gradient, is infinite or not a number."""

    kind = "non_finite_loss"


def classify(error: Exception, *, step: int) -> Failed:
    """Turn an exception into the journal's last message; ``step`` is the last one that was completed."""
    text = "".join(traceback.format_exception(error))[-TRACEBACK_MAX_CHARS:]
    kind, message, hint = _describe(error)
    return Failed(kind=kind, message=message, hint=hint, step=step, traceback=text)  # type: ignore[arg-type]  # a Fault's kind is one of them


def _describe(error: Exception) -> tuple[str, str, str | None]:
    if isinstance(error, Fault):
        return error.kind, str(error), error.hint
    if _is_out_of_memory(error):
        hint = "use a lower max_seq_length, a smaller base model, or LoRA in place of full training"
        return "out_of_memory", f"the memory was not enough: {_first_line(error)}", hint
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return (
            "disk",
            f"the disk failed or is full: {error}",
            "free space on the worker's disk, then create the job again",
        )
    return "platform", f"{type(error).__name__}: {_first_line(error)}", None


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: on an accelerator torch raises its own class, on a CPU a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
