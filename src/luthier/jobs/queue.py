"""The queue: jobs are claimed oldest first, under a lease with a fencing token.

Every claim and every adoption raises the token, so a supervisor (or a worker) that was away for too
long can be told from the one that took over: its writes raise LeaseLost.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import cast

import msgspec

from luthier.db import Session
from luthier.jobs import moves, queries, states
from luthier.jobs.schemas import Claim
from luthier.jobs.tables import Job
from luthier.protocol.spec import Hyperparameters


class LeaseLost(Exception):
    """The job is over, or another supervisor has taken it; nothing may be written under the old token."""


class ClaimOutdated(Exception):
    """The job has moved on since the claim was loaded: what was worked out from it must be worked out again."""


def claim(tx: Session, *, owner: str, lease_s: float, now: datetime) -> Claim | None:
    """Take the job that has waited longest, or return None when none is queued.

    One whose row cannot be read ends on the way: it must not stop the others.
    """
    while (job := queries.lock_oldest_queued(tx)) is not None:
        if (fault := _find_fault(job)) is not None:
            _end_unreadable(tx, job, fault, now=now)
            continue
        job.started_at = now
        _lease(job, owner=owner, lease_s=lease_s, now=now)
        moves.advance(tx, job, "running", f"Job started at {moves.format_time(now)}", now=now)
        return _view(job)
    return None


def adopt(tx: Session, *, owner: str, lease_s: float, now: datetime, held: Collection[str] = ()) -> list[Claim]:
    """Take over, each with a new token, the jobs that this owner left behind and those whose lease ran out.

    ``held`` names the jobs that the caller runs already and keeps as they are. One whose row cannot be read ends.
    """
    adopted = []
    for job in queries.lock_adoptable(tx, owner=owner, now=now, held=held):
        if (fault := _find_fault(job)) is not None:
            _end_unreadable(tx, job, fault, now=now)
            continue
        _lease(job, owner=owner, lease_s=lease_s, now=now)
        adopted.append(job)
    tx.flush()
    return [_view(job) for job in adopted]


def _find_fault(job: Job) -> str | None:
    try:
        _view(job)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _end_unreadable(tx: Session, job: Job, fault: str, *, now: datetime) -> None:
    job.error_kind = "platform"
    job.error_message = f"the server cannot read what it kept of the job: {fault}"
    message = moves.describe_failure(job.error_message, "create the job again")
    moves.finish(tx, job, "error", message, charged_nanos=0, now=now)


def renew(tx: Session, job_id: str, *, token: int, lease_s: float, now: datetime) -> bool:
    """Prolong a lease. False: it is gone, and the caller must stop its worker."""
    return queries.renew_lease(tx, job_id, token=token, expires_at=now + timedelta(seconds=lease_s))


def list_held(tx: Session, owner: str) -> list[Claim]:
    """Return the jobs that this owner holds, as they are now: a cancellation shows in ``state``.

    One whose row cannot be read is not among them, so that its worker is ended; the next ``adopt`` ends the job.
    """
    return [_view(job) for job in queries.list_leased(tx, owner) if _find_fault(job) is None]


def require_lease(tx: Session, job_id: str, token: int) -> None:
    """Lock the job and make sure that it is held under this token. Raises LeaseLost.

    First statement of every guarded write: what follows in the transaction is then fenced.
    """
    lock_leased(tx, job_id, token)


def require_current(tx: Session, claim: Claim) -> None:
    """Do what ``require_lease`` does, and make sure that the job is still as the claim has it. Raises ClaimOutdated.

    A cancellation shows by the state. A stretch of journal that is in the rows already, though its commit was
    never acknowledged, shows by the offset.
    """
    job = lock_leased(tx, claim.job_id, claim.token)
    if (job.state, job.journal_offset) != (claim.state, claim.journal_offset):
        msg = (
            f"{claim.job_id}: loaded as {claim.state} at byte {claim.journal_offset} of the journal, "
            f"now {job.state} at byte {job.journal_offset}"
        )
        raise ClaimOutdated(msg)


def lock_leased(tx: Session, job_id: str, token: int) -> Job:
    """Do what ``require_lease`` does and return the row, for the modules of this domain."""
    job = queries.lock_job(tx, job_id)
    if job is None or job.lease_owner is None or job.lease_token != token:
        held = "the job is unknown" if job is None else f"state {job.state}, token {job.lease_token}"
        msg = f"{job_id}: token {token} holds no lease ({held})"
        raise LeaseLost(msg)
    return job


def _lease(job: Job, *, owner: str, lease_s: float, now: datetime) -> None:
    job.lease_owner = owner
    job.lease_token += 1
    job.lease_expires_at = now + timedelta(seconds=lease_s)


def _view(job: Job) -> Claim:
    return Claim(
        job_id=job.id,
        token=job.lease_token,
        project_id=job.project_id,
        state=states.parse(job.state),
        created_at=job.created_at,
        started_at=cast("datetime", job.started_at),
        cancel_requested_at=job.cancel_requested_at,
        base_model=job.base_model,
        base_model_revision=job.base_model_revision,
        hyperparameters=msgspec.convert(job.hyperparameters, Hyperparameters),
        training_file_id=job.training_file_id,
        validation_file_id=job.validation_file_id,
        train_tokenization=cast("str", job.train_tokenization),
        validation_tokenization=job.validation_tokenization,
        output_name=job.output_name,
        journal_offset=job.journal_offset,
        step=job.step,
        total_steps=job.total_steps,
        tokens_done=job.tokens_done,
        heard_at=job.heard_at,
    )
