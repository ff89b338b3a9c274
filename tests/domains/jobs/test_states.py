from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.jobs import states


def test_terminal_states_have_no_way_out():
    assert not [move for move in states.TABLE if move[0] in states.TERMINAL]


def test_every_live_state_can_end_in_an_error():
    assert {old for old, new in states.TABLE if new == "error"} == states.LIVE


def test_a_job_that_a_worker_has_is_cancelled_only_after_it_was_asked_to_end():
    assert {old for old, new in states.TABLE if new == "cancelled"} == {"pending", "queued", "cancel_requested"}


def test_no_work_is_started_without_a_price():
    assert {old for old, new in states.TABLE if new == "running"} == {"queued"}


@given(choices=st.lists(st.integers(min_value=0), max_size=len(states.STATES)))
def test_any_walk_along_the_table_visits_no_state_twice(choices):
    # Each state is left for good: so a job comes to its end, and an event tells each state once.
    state, seen = states.INITIAL, [states.INITIAL]
    for choice in choices:
        ways = [new for old, new in states.TABLE if old == state]
        if not ways:
            break
        state = ways[choice % len(ways)]
        assert state not in seen
        seen.append(state)


@given(old=st.sampled_from(states.STATES), new=st.sampled_from(states.STATES))
def test_event_type_of_a_move_exists_exactly_when_the_table_has_it(old, new):
    if (old, new) in states.TABLE:
        assert states.get_event_type(old, new) == states.TABLE[old, new]
    else:
        with pytest.raises(states.IllegalMove, match=f"from {old} to {new}"):
            states.get_event_type(old, new)
