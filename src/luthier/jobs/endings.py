"""How a job is ended from outside: by its owner, or because funds or a limit no longer cover it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from luthier.billing import funds
from luthier.billing.funds import Excess
from luthier.billing.limits import AlertView
from luthier.billing.policy import Policy
from luthier.db import Session
from luthier.errors import PaymentRequired
from luthier.jobs import log, moves, queries, states
from luthier.jobs.tables import Job


@dataclass(frozen=True)
class Review:
    """Which jobs the funds or a limit no longer cover, each with what is exceeded, and which are covered again."""

    uncovered: Mapping[str, Excess]
    covered_again: tuple[str, ...]


def cancel(tx: Session, job: Job, message: str, *, now: datetime) -> None:
    """End a locked, live job: at once when no worker has it, else as soon as its worker has ended."""
    if job.state == "cancel_requested":
        return
    job.cancel_requested_at = now
    job.limit_deadline_at = None
    if job.state in states.LEASED:
        moves.advance(tx, job, "cancel_requested", message, now=now)
        return
    stopped = f"Job stopped at {moves.format_time(now)} before it started; nothing was charged"
    moves.finish(tx, job, "cancelled", stopped, charged_nanos=0, now=now)


def stop_for_funds(tx: Session, job: Job, refusal: PaymentRequired, *, now: datetime) -> None:
    """End a locked job that was accepted before its price was known, and may not be paid for."""
    _tell_billing_limit(tx, job, refusal.message, refusal.hint, now=now)
    cancel(tx, job, "Cancelled: the price may not be spent", now=now)


def tell_alerts(tx: Session, job_id: str, alerts: Iterable[AlertView], policy: Policy, *, now: datetime) -> None:
    """Tell in a job's log that its price brought spending to a share of a limit."""
    for alert in alerts:
        whose = "the organization" if alert.scope == "organization" else f"{alert.scope} {alert.scope_id}"
        log.append(
            tx,
            job_id,
            "warning",
            f"{alert.percent} % of the monthly limit of {whose} is used: {policy.format(alert.used_nanos)} of "
            f"{policy.format(alert.limit_nanos)}",
            now=now,
            level="warning",
            data={"scope": alert.scope, "scope_id": alert.scope_id, "percent": alert.percent},
        )


def review(tx: Session, *, policy: Policy, now: datetime) -> Review:
    """Find the jobs that are no longer covered, the newest first of each organization; changes nothing."""
    uncovered: dict[str, Excess] = {}
    for organization_id in funds.list_payers_with_open_holds(tx):
        uncovered |= _find_uncovered(tx, organization_id, policy=policy, now=now)
    warned = queries.list_ids_with_deadline(tx)
    return Review(uncovered, tuple(job_id for job_id in warned if job_id not in uncovered))


def _find_uncovered(tx: Session, organization_id: str, *, policy: Policy, now: datetime) -> dict[str, Excess]:
    uncovered: dict[str, Excess] = {}
    for excess in funds.find_excesses(tx, organization_id, policy=policy, now=now):
        for job_id in funds.pick_newest(tx, organization_id, excess):
            uncovered.setdefault(job_id, excess)
    return uncovered


def warn_or_stop(tx: Session, job_id: str, excess: Excess, policy: Policy, *, now: datetime) -> None:
    """Warn an uncovered job of its end; end it once the grace is over. Nothing happens to one that ends already."""
    job = queries.lock_job(tx, job_id)
    if job is None or job.state in states.TERMINAL or job.state == "cancel_requested":
        return
    if job_id not in _find_uncovered(tx, excess.organization_id, policy=policy, now=now):
        return  # covered meanwhile
    cause, way_out = _describe(excess, policy)
    if job.limit_deadline_at is None:
        job.limit_deadline_at = now + timedelta(seconds=policy.grace_s)
        until = moves.format_time(job.limit_deadline_at)
        data = {"hint": way_out, "deadline_at": until}
        log.append(
            tx,
            job.id,
            "warning",
            f"{cause}; this job, the newest, is ended at {until} unless that changes; hint: {way_out}",
            now=now,
            level="warning",
            data=data,
        )
    if job.limit_deadline_at <= now:
        _tell_billing_limit(tx, job, cause, way_out, now=now)
        cancel(tx, job, "Cancelled: the funds or a limit no longer cover the job", now=now)


def clear_deadline(tx: Session, job_id: str, *, now: datetime) -> None:
    """Take back the warning of a job that is covered again."""
    job = queries.lock_job(tx, job_id)
    if job is None or job.limit_deadline_at is None:
        return
    job.limit_deadline_at = None
    if job.state in states.LIVE and job.state != "cancel_requested":
        log.append(tx, job.id, "warning", "Funds and limits cover the job again: it goes on", now=now, level="info")


def _describe(excess: Excess, policy: Policy) -> tuple[str, str]:
    """Return what is exceeded, and the way out."""
    if excess.limit is None:
        room = excess.room
        line = f" with a credit limit of {policy.format(room.credit_limit_nanos)}" if room.credit_limit_nanos else ""
        return f"The available balance is {policy.format(room.available_nanos)}{line}", policy.list_ways_out()
    limit = excess.limit
    used, monthly = policy.format(limit.used_nanos), policy.format(limit.monthly_nanos)
    cause = f"The monthly limit of {funds.describe_scope(limit)} is {monthly}, and {used} is spent or held"
    return cause, "raise the limit: luthier billing limits set; or cancel other jobs"


def _tell_billing_limit(tx: Session, job: Job, cause: str, way_out: str | None, *, now: datetime) -> None:
    job.error_kind = "billing_limit"
    job.error_message = cause
    log.append(
        tx,
        job.id,
        "billing_limit",
        cause + (f"; hint: {way_out}" if way_out else ""),
        now=now,
        level="error",
        data={"hint": way_out} if way_out else {},
    )
