"""The only code that changes a job's state: along the table, with one event in the same transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from luthier.billing import ledger
from luthier.billing.money import format_money
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
    """Move a locked job to its last state: the lease ends, the price is fixed and its hold resolved. Raises IllegalMove.

    What is not charged of the hold is given back, told by an event of its own before the last one. Nothing is held for
    a job that was not priced yet, nor for one that was accepted by a version without money: they cost nothing.
    """
    assert new in states.TERMINAL, f"{job.id}: {new} is not a last state"
    if ledger.find_hold(tx, job.id) is None:
        assert charged_nanos == 0, f"{job.id}: {charged_nanos} charged of nothing"
    elif job.price_nanos is not None:
        ledger.resolve(tx, job.id, charged_nanos, now=now)
        if (back := job.price_nanos - charged_nanos) > 0:
            _tell_refund(tx, job, new, back, now=now)
    job.charged_nanos = charged_nanos
    job.finished_at = now
    job.waiting_for = None
    job.limit_deadline_at = None
    job.seconds_remaining = None
    job.lease_owner = None
    job.lease_expires_at = None
    level: Level = "error" if new in {"error", "user_error"} else "info"
    _move(tx, job, new, message, now=now, level=level, data={**(data or {}), "charged_nanos": charged_nanos})


_WHY_BACK: Mapping[states.State, str] = {
    "cancelled": "the job was cancelled",
    "user_error": "a job whose inputs are at fault costs nothing",
    "error": "a job that fails by our fault costs nothing",
    "completed": "the steps that were not needed cost nothing",
}


def _tell_refund(tx: Session, job: Job, new: states.State, back_nanos: int, *, now: datetime) -> None:
    assert job.price_nanos is not None, f"{job.id} has no price to give back"
    currency = job.currency or "USD"
    back, held = format_money(back_nanos, currency), format_money(job.price_nanos, currency)
    of = "" if back_nanos == job.price_nanos else f" of {held}"
    log.append(
        tx,
        job.id,
        "refund",
        f"{back}{of} that was held for the job is given back: {_WHY_BACK[new]}",
        now=now,
        data={"refund_nanos": back_nanos, "held_nanos": job.price_nanos, "currency": currency},
    )


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
