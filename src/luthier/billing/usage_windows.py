"""Charges and refunds of a month in windows of a day or an hour, a page at a time. Only windows that are over are told."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from typing import Final, Literal

from luthier.billing import statement_queries as queries
from luthier.billing.months import Month
from luthier.billing.statement_queries import ChargeRow
from luthier.db import Session
from luthier.errors import InvalidRequest

Granularity = Literal["day", "hour"]
_LENGTHS: Final = {"day": timedelta(days=1), "hour": timedelta(hours=1)}
CLOSING: Final = timedelta(minutes=15)  # longer than any wait for a lock, or for a round of calls to a processor


@dataclass(frozen=True)
class Item:
    """A charge, or (``nanos`` below zero) a refund, of one job. ``is_credit``: promotional credit covered all of it."""

    kind: Literal["charge", "refund"]
    job_id: str
    project_id: str
    api_key_id: str
    base_model: str
    method: str
    training_type: str
    tokens: int
    rate_nanos: int
    price_version: str
    nanos: int
    is_credit: bool


@dataclass(frozen=True)
class Window:
    """What was charged and refunded from ``start`` to before ``end``."""

    start: datetime
    end: datetime
    items: list[Item]


@dataclass(frozen=True)
class Page:
    """Some windows of a month. ``first`` and ``last_end`` are of all its windows; None without any."""

    windows: list[Window]
    next_cursor: str | None
    first: datetime | None
    last_end: datetime | None


def get_page(
    tx: Session,
    organization_id: str,
    month: Month,
    *,
    granularity: Granularity,
    cursor: str | None,
    limit: int,
    now: datetime,
) -> Page:
    """Return up to ``limit`` windows that have usage, from where a cursor of this month and granularity says.

    A window is over ``CLOSING`` after its end: a transfer is dated before it waits for its turn, or for a processor.
    """
    end = min(month.end, _get_start(now - CLOSING, granularity))
    if end <= month.start:
        return Page([], None, None, None)
    begin = month.start if cursor is None else _read_cursor(cursor, month, granularity)
    windows = list(islice(_stream_windows(tx, organization_id, begin, end, granularity), limit + 1))
    times = queries.find_charge_times(tx, organization_id, month.start, end)
    return Page(
        windows[:limit],
        _write_cursor(windows[limit].start, month, granularity) if len(windows) > limit else None,
        _get_start(times[0], granularity) if times else None,
        _get_start(times[1], granularity) + _LENGTHS[granularity] if times else None,
    )


def _stream_windows(
    tx: Session, organization_id: str, begin: datetime, end: datetime, granularity: Granularity
) -> Iterator[Window]:
    rows = queries.stream_charges(tx, organization_id, begin, end)
    for start, group in groupby(rows, lambda row: _get_start(row.created_at, granularity)):
        yield Window(start, start + _LENGTHS[granularity], [_view(row) for row in group])


def _view(row: ChargeRow) -> Item:
    is_charge = row.kind == "capture"
    from_credit = row.from_credit_nanos if is_charge else row.credit_nanos
    return Item(
        kind="charge" if is_charge else "refund",
        job_id=row.job_id,
        project_id=row.project_id,
        api_key_id=row.api_key_id,
        base_model=row.base_model,
        method=row.method,
        training_type=row.training_type,
        tokens=row.tokens if is_charge else 0,
        rate_nanos=row.rate_nanos,
        price_version=row.price_version,
        nanos=row.spent_nanos,
        is_credit=from_credit == abs(row.spent_nanos),
    )


def _get_start(moment: datetime, granularity: Granularity) -> datetime:
    start = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return start if granularity == "hour" else start.replace(hour=0)


def _write_cursor(start: datetime, month: Month, granularity: Granularity) -> str:
    text = f"{month.period} {granularity} {start.isoformat()}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_cursor(cursor: str, month: Month, granularity: Granularity) -> datetime:
    try:
        period, of, start = base64.urlsafe_b64decode(cursor.encode()).decode().split(" ")
        moment = datetime.fromisoformat(start)
    except (binascii.Error, ValueError):
        period = of = ""
        moment = month.start
    if moment.tzinfo is None or (period, of) != (month.period, granularity) or not month.start <= moment < month.end:
        raise InvalidRequest(
            "invalid_cursor",
            f"after is not a cursor of this month and granularity: {cursor[:80]!r}",
            hint="give next_cursor of the answer before, with the same month and granularity",
            param="after",
        )
    return moment
