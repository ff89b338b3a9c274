"""A job's log: its events and its metrics, numbered from 1 without gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from luthier.db import Session
from luthier.jobs import queries
from luthier.jobs.schemas import EventView, Level, MetricView


def append(
    tx: Session,
    job_id: str,
    type: str,
    message: str,
    *,
    now: datetime,
    level: Level = "info",
    step: int | None = None,
    data: Mapping[str, object] | None = None,
) -> int:
    """Add one event and return its number.

    Write it in the transaction of the change that it tells.
    """
    seq = queries.take_event_numbers(tx, job_id, 1)
    row: dict[str, object] = {
        "job_id": job_id,
        "seq": seq,
        "created_at": now,
        "type": type,
        "level": level,
        "message": message,
        "step": step,
        "data": dict(data or {}),
    }
    queries.insert_events(tx, [row])
    return seq


def list_events(tx: Session, job_id: str, *, after: int = 0, limit: int | None = None) -> list[EventView]:
    """Return a job's events, oldest first, from number ``after`` (excluded) on."""
    return [EventView(**row._mapping) for row in queries.list_events(tx, job_id, after=after, limit=limit)]  # noqa: SLF001  the public name of a row's fields


def append_metrics(tx: Session, job_id: str, metrics: Sequence[MetricView]) -> None:
    """Add metrics in the order given; their own ``seq`` is replaced by the job's next numbers."""
    if not metrics:
        return
    first = queries.take_metric_numbers(tx, job_id, len(metrics))
    rows = [asdict(metric) | {"job_id": job_id, "seq": first + index} for index, metric in enumerate(metrics)]
    queries.insert_metrics(tx, rows)


def list_metrics(
    tx: Session,
    job_id: str,
    *,
    after: int = 0,
    step_from: int | None = None,
    step_to: int | None = None,
    logged_from: datetime | None = None,
    logged_to: datetime | None = None,
    limit: int | None = None,
) -> list[MetricView]:
    """Return a job's metrics in order, from number ``after`` (excluded) on; all other bounds are included."""
    rows = queries.list_metrics(
        tx,
        job_id,
        after=after,
        step_from=step_from,
        step_to=step_to,
        logged_from=logged_from,
        logged_to=logged_to,
        limit=limit,
    )
    return [MetricView(**row._mapping) for row in rows]  # noqa: SLF001  the public name of a row's fields
