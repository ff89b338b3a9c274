"""Every statement on the tables of jobs, named."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from luthier.db import Session
from luthier.jobs import states
from luthier.jobs.tables import Event, Idempotency, Job, Metric, Supervisor

_OLDEST_FIRST = (Job.created_at, Job.id)
_place = sa.tuple_(*_OLDEST_FIRST)


def _make_place(job: Job) -> sa.Tuple:
    # Typed by hand: a plain value beside a tuple would reach the driver as it is, not as our column keeps it.
    return sa.tuple_(sa.literal(job.created_at, Job.created_at.type), sa.literal(job.id))


def lock_job(tx: Session, job_id: str) -> Job | None:
    """Read a job as it is now, and keep others from changing it until the transaction ends."""
    statement = sa.select(Job).where(Job.id == job_id).with_for_update()
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


def find_job(tx: Session, project_id: str, job_id: str) -> Job | None:
    """Read a project's job, unless it was deleted."""
    statement = sa.select(Job).where(Job.id == job_id, Job.project_id == project_id, Job.deleted_at.is_(None))
    return tx.execute(statement).scalar_one_or_none()


def find_job_by_output_name(tx: Session, project_id: str, output_name: str) -> Job | None:
    """Read the project's job that makes (or made) this output model."""
    statement = sa.select(Job).where(
        Job.output_name == output_name, Job.project_id == project_id, Job.deleted_at.is_(None)
    )
    return tx.execute(statement).scalar_one_or_none()


def has_output_name(tx: Session, output_name: str) -> bool:
    """Tell whether any job, deleted or not, has this output name."""
    return tx.execute(sa.select(Job.id).where(Job.output_name == output_name)).first() is not None


def list_jobs(tx: Session, project_id: str, *, limit: int | None, after: Job | None) -> Sequence[Job]:
    """Read a project's jobs, oldest first, from the one after ``after`` on."""
    statement = sa.select(Job).where(Job.project_id == project_id, Job.deleted_at.is_(None))
    if after is not None:
        statement = statement.where(_place > _make_place(after))
    return tx.execute(statement.order_by(*_OLDEST_FIRST).limit(limit)).scalars().all()


def count_ahead(tx: Session, job: Job) -> int:
    """Count the queued jobs that will be claimed before this one, of all projects."""
    statement = sa.select(sa.func.count()).where(Job.state == "queued", _place < _make_place(job))
    return tx.execute(statement).scalar_one()


def list_queue_positions(tx: Session, project_id: str) -> dict[str, int]:
    """Return how many jobs are ahead of each queued job of a project."""
    position = sa.func.row_number().over(order_by=_OLDEST_FIRST) - 1
    queue = sa.select(Job.id, Job.project_id, position.label("ahead")).where(Job.state == "queued").subquery()
    rows = tx.execute(sa.select(queue.c.id, queue.c.ahead).where(queue.c.project_id == project_id))
    return {row.id: row.ahead for row in rows}


def list_ids_in_state(tx: Session, state: states.State) -> Sequence[str]:
    """Return the ids of all jobs in a state, oldest first."""
    return tx.execute(sa.select(Job.id).where(Job.state == state).order_by(*_OLDEST_FIRST)).scalars().all()


def list_ids_with_deadline(tx: Session) -> Sequence[str]:
    """Return the ids of the jobs that were warned of their end by a limit."""
    return tx.execute(sa.select(Job.id).where(Job.limit_deadline_at.is_not(None))).scalars().all()


def count_by_state(tx: Session, wanted: Collection[states.State]) -> dict[states.State, int]:
    """Count all jobs in these states."""
    statement = sa.select(Job.state, sa.func.count()).where(Job.state.in_(wanted)).group_by(Job.state)
    return {states.parse(state): count for state, count in tx.execute(statement)}


def find_live_job_using_file(tx: Session, file_id: str) -> str | None:
    """Return the id of a job that is not over and names the file, if there is one."""
    uses_file = sa.or_(Job.training_file_id == file_id, Job.validation_file_id == file_id)
    return tx.execute(sa.select(Job.id).where(Job.state.in_(states.LIVE), uses_file).limit(1)).scalar_one_or_none()


def list_ended_before(tx: Session, job_ids: Collection[str], deleted_before: datetime) -> set[str]:
    """Return which of the jobs are over and were deleted before a moment."""
    statement = sa.select(Job.id).where(
        Job.id.in_(job_ids), Job.deleted_at < deleted_before, Job.state.in_(states.TERMINAL)
    )
    return set(tx.execute(statement).scalars())


def list_tokenizations_in_use(tx: Session) -> set[str]:
    """Return the tokenizations that jobs which are not over name."""
    columns = sa.select(Job.train_tokenization, Job.validation_tokenization).where(Job.state.in_(states.LIVE))
    return {key for row in tx.execute(columns) for key in row if key is not None}


def find_live_job_using_model(tx: Session, name: str) -> str | None:
    """Return the id of a job that is not over and names the base model, if there is one."""
    statement = sa.select(Job.id).where(Job.state.in_(states.LIVE), Job.base_model == name).limit(1)
    return tx.execute(statement).scalar_one_or_none()


def lock_oldest_queued(tx: Session) -> Job | None:
    """Take the job that has waited longest; one that another supervisor is taking now is passed over."""
    statement = (
        sa.select(Job).where(Job.state == "queued").order_by(*_OLDEST_FIRST).limit(1).with_for_update(skip_locked=True)
    )
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


def lock_adoptable(tx: Session, *, owner: str, now: datetime, held: Collection[str]) -> Sequence[Job]:
    """Take the leased jobs of this owner, and those whose lease ran out, except the ones already held."""
    statement = (
        sa.select(Job)
        .where(Job.state.in_(states.LEASED), sa.or_(Job.lease_owner == owner, Job.lease_expires_at <= now))
        .order_by(*_OLDEST_FIRST)
        .with_for_update(skip_locked=True)
    )
    jobs = tx.execute(statement, execution_options={"populate_existing": True}).scalars()
    return [job for job in jobs if job.id not in held]


def list_leased(tx: Session, owner: str) -> Sequence[Job]:
    """Read the jobs that an owner holds, oldest first."""
    statement = sa.select(Job).where(Job.state.in_(states.LEASED), Job.lease_owner == owner).order_by(*_OLDEST_FIRST)
    return tx.execute(statement).scalars().all()


def renew_lease(tx: Session, job_id: str, *, token: int, expires_at: datetime) -> bool:
    """Move a lease's end; False when the lease is no longer held under this token."""
    statement = (
        sa.update(Job)
        .where(Job.id == job_id, Job.lease_token == token, Job.lease_owner.is_not(None))
        .values(lease_expires_at=expires_at)
        .returning(Job.id)
    )
    return tx.execute(statement).first() is not None


def take_event_numbers(tx: Session, job_id: str, count: int) -> int:
    """Reserve the job's next event numbers and return the first."""
    statement = (
        sa.update(Job).where(Job.id == job_id).values(next_event=Job.next_event + count).returning(Job.next_event)
    )
    return tx.execute(statement).scalar_one() - count


def take_metric_numbers(tx: Session, job_id: str, count: int) -> int:
    """Reserve the job's next metric numbers and return the first."""
    statement = (
        sa.update(Job).where(Job.id == job_id).values(next_metric=Job.next_metric + count).returning(Job.next_metric)
    )
    return tx.execute(statement).scalar_one() - count


def insert_events(tx: Session, rows: list[dict[str, object]]) -> None:
    """Add lines to the log, in one statement."""
    tx.execute(sa.insert(Event), rows)


def insert_metrics(tx: Session, rows: list[dict[str, object]]) -> None:
    """Add metrics, in one statement."""
    tx.execute(sa.insert(Metric), rows)


def list_events(tx: Session, job_id: str, *, after: int, limit: int | None) -> Sequence[sa.Row[*tuple[Any, ...]]]:
    """Read a job's log from number ``after`` (excluded) on."""
    columns = (Event.seq, Event.created_at, Event.type, Event.level, Event.message, Event.step, Event.data)
    statement = sa.select(*columns).where(Event.job_id == job_id, Event.seq > after).order_by(Event.seq).limit(limit)
    return tx.execute(statement).all()


def list_metrics(
    tx: Session,
    job_id: str,
    *,
    after: int,
    step_from: int | None,
    step_to: int | None,
    logged_from: datetime | None,
    logged_to: datetime | None,
    limit: int | None,
) -> Sequence[sa.Row[*tuple[Any, ...]]]:
    """Read a job's metrics from number ``after`` (excluded) on; the bounds are included."""
    columns = (
        Metric.seq,
        Metric.logged_at,
        Metric.kind,
        Metric.step,
        Metric.epoch,
        Metric.loss,
        Metric.grad_norm,
        Metric.learning_rate,
        Metric.tokens,
        Metric.step_s,
    )
    statement = sa.select(*columns).where(Metric.job_id == job_id, Metric.seq > after)
    if step_from is not None:
        statement = statement.where(Metric.step >= step_from)
    if step_to is not None:
        statement = statement.where(Metric.step <= step_to)
    if logged_from is not None:
        statement = statement.where(Metric.logged_at >= logged_from)
    if logged_to is not None:
        statement = statement.where(Metric.logged_at <= logged_to)
    return tx.execute(statement.order_by(Metric.seq).limit(limit)).all()


def lock_idempotency(tx: Session, api_key_id: str, key: str) -> Idempotency:
    """Read what is kept for a create that was made before, and keep others from changing it."""
    statement = sa.select(Idempotency).where(Idempotency.api_key_id == api_key_id, Idempotency.key == key)
    return tx.execute(statement.with_for_update(), execution_options={"populate_existing": True}).scalar_one()


def mark_delivered(tx: Session, job_id: str, *, now: datetime) -> None:
    """Note that the answer which told the caller of this job has left."""
    statement = sa.update(Idempotency).where(Idempotency.job_id == job_id, Idempotency.delivered_at.is_(None))
    tx.execute(statement.values(delivered_at=now))


def delete_idempotency_before(tx: Session, moment: datetime) -> None:
    """Forget creates that can no longer be repeated."""
    tx.execute(sa.delete(Idempotency).where(Idempotency.created_at < moment))


def find_supervisor(tx: Session, supervisor_id: str) -> Supervisor | None:
    """Read a supervisor."""
    return tx.get(Supervisor, supervisor_id)


def list_supervisors(tx: Session, *, seen_since: datetime) -> Sequence[Supervisor]:
    """Read the supervisors that were heard of since."""
    statement = sa.select(Supervisor).where(Supervisor.seen_at >= seen_since).order_by(Supervisor.started_at)
    return tx.execute(statement).scalars().all()
