"""An operator gives back what a job was charged: in the ledger and in the job's log, together."""

from __future__ import annotations

from datetime import datetime

from luthier.billing import ledger
from luthier.billing.ledger import EntryView
from luthier.billing.money import format_money
from luthier.db import Session
from luthier.errors import Conflict, NotFound
from luthier.jobs import log, queries


def refund(tx: Session, job_id: str, nanos: int | None, *, key: str, reason: str, now: datetime) -> EntryView:
    """Give back a part of a job's charge, or (None) all that is left; the same ``key`` again changes nothing.

    Raises NotFound for a job that was never priced, Conflict when nothing is left, InvalidRequest for more than is.
    """
    queries.lock_job(tx, job_id)
    hold = ledger.find_hold(tx, job_id)
    if hold is None:
        raise NotFound(
            "job_not_found",
            f"nothing was ever held for a job with this id: {job_id}",
            hint="luthier ft list shows a project's jobs",
        )
    existing = ledger.find_entry(tx, hold.organization_id, "refund", key)
    if existing is not None and existing.cause.id != job_id:
        existing = None  # another job's: the ledger refuses the key
    if nanos is None:
        nanos = hold.charged_nanos if existing is None else -existing.amounts["spent"]
    if nanos == 0:
        raise Conflict(
            "nothing_to_refund",
            f"nothing is left to refund of what job {job_id} was charged",
            hint=f"see its money: luthier billing job {job_id}",
        )
    entry = ledger.refund(tx, job_id, nanos, key=key, reason=reason, now=now)
    if existing is None:
        log.append(
            tx,
            job_id,
            "refund",
            f"{format_money(nanos, hold.currency)} that was charged for the job is given back: {reason}",
            now=now,
            data={"refund_nanos": nanos, "charged_nanos": hold.charged_nanos - nanos, "currency": hold.currency},
        )
    return entry
