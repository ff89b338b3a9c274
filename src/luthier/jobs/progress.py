"""What a supervisor writes about a job that it holds: progress, moves and the end, all fenced by the lease."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from luthier import faults
from luthier.billing import ledger, pricing
from luthier.billing.money import format_money
from luthier.db import Session
from luthier.jobs import moves, queue, states
from luthier.jobs.schemas import Outcome, ProgressUpdate
from luthier.jobs.tables import Job


def record(tx: Session, job_id: str, token: int, update: ProgressUpdate, *, now: datetime) -> None:
    """Keep what the worker said. Raises LeaseLost.

    Ingest in one transaction: events and metrics of a stretch of journal, and this with the offset of
    its end. A stretch that was read before then shows by its offset, and is never kept twice.
    """
    job = queue.lock_leased(tx, job_id, token)
    if update.journal_offset is not None:
        assert update.journal_offset >= job.journal_offset, (
            f"{job_id}: the journal goes back from {job.journal_offset} to {update.journal_offset}"
        )
    for name in ProgressUpdate.__dataclass_fields__:
        value = getattr(update, name)
        if value is not None:
            setattr(job, name, value)
    job.updated_at = now
    tx.flush()


def move(  # noqa: PLR0917  reads in the order of the sentence: this job, under this token, to this state
    tx: Session,
    job_id: str,
    token: int,
    state: states.State,
    event_type: str,
    message: str,
    *,
    now: datetime,
    data: Mapping[str, object] | None = None,
) -> None:
    """Move a held job to a state that is not its last, with its event. Raises LeaseLost, IllegalMove."""
    job = queue.lock_leased(tx, job_id, token)
    expected = states.get_event_type(states.parse(job.state), state)
    assert event_type == expected, f"{job_id}: {job.state} to {state} is told by {expected}, not {event_type}"
    moves.advance(tx, job, state, message, now=now, data=data)


def settle(tx: Session, job_id: str, token: int, outcome: Outcome, *, now: datetime) -> None:
    """End a held job: last state, price and event at once; the lease is over. Raises LeaseLost, IllegalMove.

    Completed costs the quote, cancelled the completed steps, and a job that failed nothing.
    """
    job = queue.lock_leased(tx, job_id, token)
    charged_nanos = 0 if ledger.find_hold(tx, job.id) is None else _charge(job, outcome)
    # What ended a job for its funds stays told when its worker is gone.
    job.error_kind = outcome.error_kind or job.error_kind
    job.error_message = outcome.message or job.error_message
    data = dict(outcome.data)
    if outcome.hint is not None:
        data["hint"] = outcome.hint
    message = _describe(job, outcome, charged_nanos, now)
    moves.finish(tx, job, outcome.state, message, charged_nanos=charged_nanos, now=now, data=data)
    faults.hit("settle.before_commit")


def _charge(job: Job, outcome: Outcome) -> int:
    if outcome.state in {"error", "user_error"}:
        return 0
    assert job.billed_tokens is not None, f"{job.id} ran without a price"
    assert job.rate_nanos is not None, f"{job.id} ran without a price"
    assert job.price_nanos is not None, f"{job.id} ran without a price"
    if outcome.state == "completed":
        return job.price_nanos
    return pricing.price_completed_steps(
        billed=job.billed_tokens,
        rate_nanos=job.rate_nanos,
        completed_steps=job.step,
        total_steps=job.total_steps,
    )


def _describe(job: Job, outcome: Outcome, charged_nanos: int, now: datetime) -> str:
    if outcome.state == "completed":
        return f"Job finished at {moves.format_time(now)}"
    if outcome.state == "cancelled":
        steps = f"after step {job.step} of {job.total_steps}" if job.total_steps else "before the first step"
        price = format_money(charged_nanos, job.currency or "USD")
        charged = f"{price} charged for the completed steps" if charged_nanos else "nothing was charged"
        return f"Job stopped at {moves.format_time(now)} {steps}; {charged}"
    assert outcome.message is not None, f"{job.id} ends in {outcome.state} without a reason"
    return moves.describe_failure(outcome.message, outcome.hint)
