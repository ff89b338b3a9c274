"""The states of a job and the moves between them, each with the type of the event that tells it."""

from __future__ import annotations

from typing import Final, Literal, get_args

State = Literal[
    "pending",
    "queued",
    "running",
    "compressing",
    "uploading",
    "cancel_requested",
    "cancelled",
    "error",
    "user_error",
    "completed",
]

INITIAL: Final[State] = "pending"
INITIAL_EVENT: Final = "job_pending"

TABLE: Final[dict[tuple[State, State], str]] = {
    # Not priced yet: the file is being checked, the model fetched or the tokens counted.
    ("pending", "queued"): "job_queued",
    ("pending", "cancelled"): "job_stopped",
    ("pending", "user_error"): "job_error",
    ("pending", "error"): "job_error",
    # Priced, waiting for a supervisor with a free slot.
    ("queued", "running"): "job_start",
    ("queued", "cancelled"): "job_stopped",
    ("queued", "error"): "job_error",
    # Leased: a worker has it.
    ("running", "compressing"): "model_compressing",
    ("running", "cancel_requested"): "cancel_requested",
    ("running", "user_error"): "job_error",
    ("running", "error"): "job_error",
    ("compressing", "uploading"): "model_uploading",
    ("compressing", "cancel_requested"): "cancel_requested",
    ("compressing", "user_error"): "job_error",
    ("compressing", "error"): "job_error",
    ("uploading", "completed"): "job_complete",
    ("uploading", "cancel_requested"): "cancel_requested",
    ("uploading", "user_error"): "job_error",
    ("uploading", "error"): "job_error",
    ("cancel_requested", "cancelled"): "job_stopped",
    ("cancel_requested", "user_error"): "job_error",
    ("cancel_requested", "error"): "job_error",
}

STATES: Final[tuple[State, ...]] = get_args(State)
TERMINAL: Final = frozenset[State]({"cancelled", "error", "user_error", "completed"})
LEASED: Final = frozenset[State]({"running", "compressing", "uploading", "cancel_requested"})
LIVE: Final = frozenset(STATES) - TERMINAL


class IllegalMove(AssertionError):
    """A move that the table does not have was asked for: our own fault."""


def parse(text: str) -> State:
    """Return a state as read from a row."""
    assert text in STATES, f"unknown state: {text}"
    return text


def get_event_type(old: State, new: State) -> str:
    """Return the type of the event that tells this move. Raises IllegalMove when there is no such move."""
    event_type = TABLE.get((old, new))
    if event_type is None:
        msg = f"a job cannot go from {old} to {new}"
        raise IllegalMove(msg)
    return event_type
