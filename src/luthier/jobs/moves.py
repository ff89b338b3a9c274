"""The only code that changes a job's state: along the table, with one event in the same transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from luthier.db import Session
from luthier.jobs import log, states
from luthier.jobs.schemas import Level
from luthier.jobs.tables import Job


def format_time(moment: datetime) -> str:
    """Write a time for an event's message: UTC, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def describe_failure(message: str, hint: str | None) -> str:
    """Write the last event of a job that failed: what happened, what it cost, what can be done."""
    return f"{message}; nothing was charged" + (f"; hint: {hint}" if hint else "")


def advance(
    tx: Session,
    job: Job,
    new: states.State,
    message: str,
    *,
    now: datetime,
    data: Mapping[str, object] | None = None,
) -> None:
    """Move a locked job to a state that is not its last. Raises IllegalMove."""
    assert new not in states.TERMINAL, f"{job.id}: use finish for {new}"
    _move(tx, job, new, message, now=now, level="info", data=data or {})


def finish(
    tx: Session,
    job: Job,
    new: states.State,
    message: str,
    *,
    charged_nanos: int,
    now: datetime,
    data: Mapping[str, object] | None = None,
) -> None:
    """Move a locked job to its last state: the lease ends and the price is fixed. Raises IllegalMove."""
    assert new in states.TERMINAL, f"{job.id}: {new} is not a last state"
    job.charged_nanos = charged_nanos
    job.finished_at = now
    job.waiting_for = None
    job.seconds_remaining = None
    job.lease_owner = None
    job.lease_expires_at = None
    level: Level = "error" if new in {"error", "user_error"} else "info"
    _move(tx, job, new, message, now=now, level=level, data={**(data or {}), "charged_nanos": charged_nanos})


def _move(
    tx: Session,
    job: Job,
    new: states.State,
    message: str,
    *,
    now: datetime,
    level: Level,
    data: Mapping[str, object],
) -> None:
    event_type = states.get_event_type(states.parse(job.state), new)
    job.state = new
    job.updated_at = now
    tx.flush()
    log.append(tx, job.id, event_type, message, now=now, level=level, step=job.step or None, data=data)
