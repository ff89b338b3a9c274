"""Every statement that statements and usage ask of the ledger and of holds, named."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple, cast

import sqlalchemy as sa

from luthier.billing.tables import Hold, LedgerAccount, LedgerEntry
from luthier.db import Session

_CHUNK_ROWS = 1_000
_entries = cast("sa.Table", LedgerEntry.__table__)
_holds = cast("sa.Table", Hold.__table__)


class Sums(NamedTuple):
    """What entries have moved in sum."""

    cash_nanos: int
    credit_nanos: int
    held_nanos: int
    spent_nanos: int


class UsedRow(NamedTuple):
    """What was used under one name: jobs that were charged, their tokens, and what they cost, net of refunds."""

    id: str
    jobs: int
    tokens: int
    nanos: int


class ChargeRow(NamedTuple):
    """A capture or a refund, with what its job had bought."""

    created_at: datetime
    seq: int
    kind: str
    cash_nanos: int
    credit_nanos: int
    spent_nanos: int
    job_id: str
    project_id: str
    api_key_id: str
    base_model: str
    method: str
    training_type: str
    tokens: int
    rate_nanos: int
    price_version: str
    from_credit_nanos: int  # of what was captured, so much was promotional credit


def _sum(column: Any) -> Any:
    """Return a sum that is 0 for no rows, and a whole number on both databases."""
    return sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)


def sum_before(tx: Session, organization_id: str, moment: datetime, *, through_seq: int = 0) -> Sums:
    """Sum an organization's entries before a moment, and those up to a number."""
    statement = sa.select(*(_sum(_entries.c[name]) for name in Sums._fields)).where(
        _entries.c.organization_id == organization_id,
        sa.or_(_entries.c.created_at < moment, _entries.c.seq <= through_seq),
    )
    return Sums(*map(int, tx.execute(statement).one()))


def sum_by_kind(tx: Session, organization_id: str, start: datetime, end: datetime) -> dict[str, tuple[int, Sums]]:
    """Return the number and the sums of an organization's entries from ``start`` to before ``end``, by kind."""
    statement = (
        sa.select(_entries.c.kind, sa.func.count(), *(_sum(_entries.c[name]) for name in Sums._fields))
        .where(
            _entries.c.organization_id == organization_id,
            _entries.c.created_at >= start,
            _entries.c.created_at < end,
        )
        .group_by(_entries.c.kind)
    )
    return {kind: (int(count), Sums(*map(int, sums))) for kind, count, *sums in tx.execute(statement)}


def stream_entries(
    tx: Session, organization_id: str, start: datetime, end: datetime, *, after_seq: int
) -> Iterator[dict[str, Any]]:
    """Yield an organization's entries of a time after a number, in order, as plain columns, a chunk of them at a time."""
    names = list(_entries.c.keys())
    statement = (
        sa.select(*_entries.c)
        .where(
            _entries.c.organization_id == organization_id,
            _entries.c.created_at >= start,
            _entries.c.created_at < end,
        )
        .order_by(_entries.c.seq)
        .limit(_CHUNK_ROWS)
    )
    while rows := tx.execute(statement.where(_entries.c.seq > after_seq)).all():
        for row in rows:
            yield dict(zip(names, row, strict=True))
        after_seq = rows[-1].seq


def sum_usage(tx: Session, organization_id: str, start: datetime, end: datetime, *, by: str) -> list[UsedRow]:
    """Return what jobs that were charged from ``start`` to before ``end`` used, by a column of holds; most costly first."""
    name = _holds.c[by]
    cost = _sum(_holds.c.captured_nanos - _holds.c.refunded_nanos).label("cost")
    statement = (
        sa.select(name, sa.func.count(), _sum(_charged_tokens()), cost)
        .where(
            _holds.c.organization_id == organization_id,
            _holds.c.resolved_at >= start,
            _holds.c.resolved_at < end,
            _holds.c.captured_nanos > 0,
        )
        .group_by(name)
        .order_by(cost.desc(), name)
    )
    return [UsedRow(str(id), int(jobs), int(tokens), int(nanos)) for id, jobs, tokens, nanos in tx.execute(statement)]


def _charged_tokens() -> Any:
    """Return the tokens of what was captured: all that were bought, or those of the steps that were completed."""
    is_whole = sa.or_(_holds.c.captured_nanos == _holds.c.amount_nanos, _holds.c.rate_nanos == 0)
    of_steps = _holds.c.captured_nanos // _holds.c.rate_nanos
    return sa.case((is_whole, _holds.c.billed_tokens), else_=of_steps)


def _select_charges(organization_id: str, start: datetime, end: datetime) -> Any:
    captured, credit = _holds.c.captured_nanos, _holds.c.credit_nanos
    columns = {
        **{name: _entries.c[name] for name in ChargeRow._fields[:6]},
        **{name: _holds.c[name] for name in ChargeRow._fields[6:12]},
        "tokens": _charged_tokens(),
        "rate_nanos": _holds.c.rate_nanos,
        "price_version": _holds.c.price_version,
        "from_credit_nanos": sa.case((captured < credit, captured), else_=credit),
    }
    return (
        sa.select(*(columns[name].label(name) for name in ChargeRow._fields))
        .join(_holds, _holds.c.job_id == _entries.c.cause_id)
        .where(
            _entries.c.organization_id == organization_id,
            _entries.c.kind.in_(("capture", "refund")),
            _entries.c.created_at >= start,
            _entries.c.created_at < end,
        )
    )


def stream_charges(tx: Session, organization_id: str, start: datetime, end: datetime) -> Iterator[ChargeRow]:
    """Yield an organization's captures and refunds from ``start`` to before ``end``, in their order."""
    statement = _select_charges(organization_id, start, end).order_by(_entries.c.seq).limit(_CHUNK_ROWS)
    after_seq = 0
    while rows := tx.execute(statement.where(_entries.c.seq > after_seq)).all():
        for row in rows:
            yield ChargeRow(*row)
        after_seq = rows[-1].seq


def find_charge_times(
    tx: Session, organization_id: str, start: datetime, end: datetime
) -> tuple[datetime, datetime] | None:
    """Return when the first and the last capture or refund of a time were; None when there was none."""
    charges = _select_charges(organization_id, start, end).subquery()
    first, last = tx.execute(sa.select(sa.func.min(charges.c.created_at), sa.func.max(charges.c.created_at))).one()
    return None if first is None else (first, last)


def count_entries(tx: Session) -> int:
    """Return how many entries the ledger has, as the accounts know them."""
    return int(tx.execute(sa.select(_sum(LedgerAccount.last_seq))).scalar_one())
