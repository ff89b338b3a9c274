from __future__ import annotations

import pytest

from luthier.protocol.journal import Failed, Finished
from luthier.supervisor.decisions import (
    EXIT_GRACE_S,
    Abandon,
    Ending,
    Kill,
    Launch,
    Observation,
    Patience,
    Settle,
    Terminate,
    Wait,
    decide,
    describe_death,
)
from luthier.supervisor.processes import Exit

PATIENCE = Patience(stall_timeout_s=100, cancel_grace_s=10)
BROKEN = Ending("error", kind="disk", message="full")


def see(**changes) -> Observation:
    return Observation(**({"state": "running", "has_lease": True, "worker": "alive"} | changes))


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (see(), Wait()),
        (see(has_lease=False), Abandon()),
        (see(has_lease=False, worker="gone", ending=Finished(step=1, epochs_completed=1)), Abandon()),
        # A worker that lives
        (see(broken=BROKEN), Kill()),
        (see(ending=Finished(step=1, epochs_completed=1)), Wait()),
        (see(ending=Finished(step=1, epochs_completed=1), ending_s=EXIT_GRACE_S + 1), Kill()),
        (see(state="cancel_requested"), Terminate()),
        (see(state="cancel_requested", terminated_s=9), Wait()),
        (see(state="cancel_requested", terminated_s=11), Kill()),
        (see(state="cancel_requested", terminated_s=9, silent_s=101), Wait()),
        (see(silent_s=99), Wait()),
        # None, or a dead one
        (see(worker="none"), Launch()),
        (see(worker="none", caught_up=False), Wait()),
        (see(worker="none", state="cancel_requested"), Settle(Ending("cancelled"))),
        (see(worker="none", broken=BROKEN), Settle(BROKEN)),
        (see(worker="gone"), Launch()),  # behind the gate when its supervisor died
        (see(worker="gone", caught_up=False, has_journal=True), Wait()),
        (see(worker="gone", has_journal=True, state="cancel_requested"), Settle(Ending("cancelled"))),
        (see(worker="gone", has_journal=True, state="cancel_requested", broken=BROKEN), Settle(Ending("cancelled"))),
        (see(worker="gone", has_journal=True, broken=BROKEN), Settle(BROKEN)),
        (
            see(worker="gone", has_journal=True, state="uploading", ending=Finished(step=7, epochs_completed=1)),
            Settle(Ending("completed", step=7)),
        ),
    ],
)
def test_decide_returns_the_one_thing_to_do(seen, action):
    assert decide(seen, PATIENCE) == action


def test_decide_when_silent_for_too_long_kills_for_that_reason():
    action = decide(see(silent_s=101), PATIENCE)
    assert isinstance(action, Kill)
    assert action.broken.message == "the worker said nothing for 100 s and was ended"


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("data", "user_error"),
        ("hyperparameters", "user_error"),
        ("out_of_memory", "error"),
        ("non_finite_loss", "error"),
        ("disk", "error"),
        ("base_model", "error"),
        ("lease_lost", "error"),
        ("platform", "error"),
    ],
)
def test_decide_when_worker_failed_puts_the_fault_where_it_belongs(kind, state):
    failed = Failed(kind=kind, message="it is so", hint="do this", step=3)
    action = decide(see(worker="gone", has_journal=True, ending=failed), PATIENCE)
    assert action == Settle(Ending(state, kind=kind, message="it is so", hint="do this", step=3))


@pytest.mark.parametrize(
    ("state", "stopped", "words"),
    [("running", True, "told to stop by somebody"), ("running", False, "without an output model")],
)
def test_decide_when_worker_finished_out_of_turn_is_an_error(state, stopped, words):
    finished = Finished(step=3, epochs_completed=0, stopped=stopped)
    action = decide(see(worker="gone", has_journal=True, state=state, ending=finished), PATIENCE)
    assert action.ending.state == "error"
    assert words in action.ending.message


def test_decide_when_worker_started_here_died_without_a_word_does_not_start_it_again():
    action = decide(see(worker="gone", launched_here=True, exit=Exit(code=1), last_line="ImportError: torch"), PATIENCE)
    assert action.ending.message == "the worker ended before it said anything with exit code 1: ImportError: torch"


def test_describe_death_when_the_kernel_killed_for_memory_says_so_and_the_way_out():
    ending = describe_death(Exit(signal=9, out_of_memory=True), has_journal=True)
    assert ending.kind == "out_of_memory"
    assert "ran out of memory" in ending.message
    assert "batch_size" in ending.hint
