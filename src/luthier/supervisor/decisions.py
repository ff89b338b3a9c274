"""What to do about a run, from what is seen of it: pure, so that every case is a line in a test."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Literal

from luthier.jobs import states
from luthier.protocol import journal
from luthier.supervisor.processes import Exit

EXIT_GRACE_S = 15.0  # after its last message a worker has nothing left to do; torch may take seconds to unload

USER_FAULTS = frozenset({"data", "hyperparameters"})


@dataclass(frozen=True)
class Ending:
    """How a job ends.

    ``kind`` and ``message`` are those of the failure, as in ``journal.Failed``; None for a job that did not fail.
    """

    state: Literal["completed", "cancelled", "error", "user_error"]
    kind: str | None = None
    message: str | None = None
    hint: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class Observation:
    """One run at one moment. The worker was looked at first, the journal read after that.

    So ``caught_up`` with a worker that is gone means that nothing more will ever be read.
    """

    state: states.State
    has_lease: bool
    worker: Literal["none", "alive", "gone"]
    exit: Exit | None = None
    last_line: str | None = None  # of a dead worker's log
    launched_here: bool = False  # by this process, so that an empty journal is the worker's doing
    has_journal: bool = False
    caught_up: bool = True  # every message but the ending is in the rows, every archive in the store
    ending: journal.Finished | journal.Failed | None = None
    broken: Ending | None = None  # found by the supervisor: the run cannot go on
    silent_s: float = 0.0
    ending_s: float = 0.0  # since the ending was seen
    terminated_s: float | None = None  # since the worker was asked to stop


@dataclass(frozen=True)
class Patience:
    """How long a worker may keep us waiting."""

    stall_timeout_s: float
    cancel_grace_s: float


@dataclass(frozen=True)
class Wait:
    """Nothing to do now."""


@dataclass(frozen=True)
class Launch:
    """Prepare the run directory and start the worker."""


@dataclass(frozen=True)
class Terminate:
    """Ask the worker to stop."""


@dataclass(frozen=True)
class Kill:
    """End the worker; the run is ``broken`` from now on where an ending is given."""

    broken: Ending | None = None


@dataclass(frozen=True)
class Abandon:
    """Somebody else has the job: end our worker and write nothing."""


@dataclass(frozen=True)
class Settle:
    """Write the job's end."""

    ending: Ending


Action = Wait | Launch | Terminate | Kill | Abandon | Settle


def decide(seen: Observation, patience: Patience) -> Action:
    """Return the one thing to do next."""
    if not seen.has_lease:
        return Abandon()
    if seen.worker == "alive":
        return _decide_alive(seen, patience)
    if not seen.caught_up:
        return Wait()
    return _decide_gone(seen)


def _decide_alive(seen: Observation, patience: Patience) -> Action:
    if seen.broken is not None:
        return Kill()
    if seen.ending is not None:
        return Kill() if seen.ending_s > EXIT_GRACE_S else Wait()
    if seen.state == "cancel_requested":
        if seen.terminated_s is None:
            return Terminate()
        return Kill() if seen.terminated_s > patience.cancel_grace_s else Wait()
    return Kill(_stalled(patience.stall_timeout_s)) if seen.silent_s > patience.stall_timeout_s else Wait()


def _decide_gone(seen: Observation) -> Action:
    if seen.state == "cancel_requested":
        return Settle(Ending("cancelled"))
    if seen.broken is not None:
        return Settle(seen.broken)
    if seen.ending is not None:
        return Settle(judge(seen.ending, seen.state))
    # A worker that died before its first word, and that an earlier supervisor started, may never have
    # passed the gate. One that we let go ourselves was given its chance.
    if not (seen.has_journal or seen.launched_here):
        return Launch()
    if seen.worker == "none":
        return Settle(_left_behind())
    return Settle(describe_death(seen.exit or Exit(), has_journal=seen.has_journal, last_line=seen.last_line))


def judge(ending: journal.Finished | journal.Failed, state: states.State) -> Ending:
    """Return the job's end for the worker's last message."""
    if isinstance(ending, journal.Failed):
        side: Literal["user_error", "error"] = "user_error" if ending.kind in USER_FAULTS else "error"
        return Ending(side, kind=ending.kind, message=ending.message, hint=ending.hint, step=ending.step)
    if ending.stopped:
        return Ending(
            "error",
            kind="platform",
            message="the worker was told to stop by somebody other than this server",
            hint="create the job again",
            step=ending.step,
        )
    if state != "uploading":
        return Ending("error", kind="platform", message="the worker finished without an output model", step=ending.step)
    return Ending("completed", step=ending.step)


def describe_death(death: Exit, *, has_journal: bool, last_line: str | None = None) -> Ending:
    """Return the end of a job whose worker died without a last message, in plain words."""
    if death.out_of_memory:
        return Ending(
            "error",
            kind="out_of_memory",
            message="the machine ran out of memory, and the kernel killed the worker",
            hint="use a smaller batch_size or max_seq_length, a smaller base model, or a machine with more memory",
        )
    when = "in the middle of its work" if has_journal else "before it said anything"
    if death.signal is not None:
        how = f"was killed {when} by signal {death.signal} ({signal.strsignal(death.signal)})"
    elif death.code is not None:
        how = f"ended {when} with exit code {death.code}" + (f": {last_line}" if last_line else "")
    else:
        how = "died while no supervisor was watching"
    return Ending("error", kind="platform", message=f"the worker {how}", hint="create the job again")


def _left_behind() -> Ending:
    return Ending(
        "error",
        kind="platform",
        message="the supervisor that ran the job is gone, and its worker is not on this machine",
        hint="create the job again",
    )


def _stalled(timeout_s: float) -> Ending:
    return Ending(
        "error",
        kind="platform",
        message=f"the worker said nothing for {timeout_s:g} s and was ended",
        hint="create the job again; a step that really takes this long needs a longer LUTHIER_STALL_TIMEOUT_S",
    )
