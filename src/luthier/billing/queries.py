"""Every statement on the tables of tokenizations, the ledger and holds, named."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from luthier.billing.tables import Hold, LedgerAccount, LedgerAudit, LedgerEntry, Tokenization
from luthier.db import Session, upsert
from luthier.db.prepared import Prepared


def find_row(tx: Session, key: str) -> Tokenization | None:
    """Read a tokenization."""
    return tx.execute(sa.select(Tokenization).where(Tokenization.key == key)).scalar_one_or_none()


def find_row_for_update(tx: Session, key: str) -> Tokenization | None:
    """Read a tokenization as it is now, and keep others from changing it until the transaction ends."""
    statement = sa.select(Tokenization).where(Tokenization.key == key).with_for_update()
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


def list_rows(tx: Session, keys: Collection[str]) -> Sequence[Tokenization]:
    """Read tokenizations."""
    return tx.execute(sa.select(Tokenization).where(Tokenization.key.in_(keys))).scalars().all()


def list_keys(tx: Session, statuses: Collection[str]) -> Sequence[str]:
    """Return the keys of the tokenizations in these states, oldest first."""
    statement = sa.select(Tokenization.key).where(Tokenization.status.in_(statuses))
    return tx.execute(statement.order_by(Tokenization.created_at, Tokenization.key)).scalars().all()


def delete_rows(tx: Session, keys: Collection[str]) -> None:
    """Remove tokenizations."""
    tx.execute(sa.delete(Tokenization).where(Tokenization.key.in_(keys)))


def find_claimable_row(tx: Session, now: datetime) -> Tokenization | None:
    """Take the oldest row that nobody works on; one that another supervisor is taking now is passed over."""
    statement = (
        sa.select(Tokenization)
        .where(
            sa.or_(
                Tokenization.status == "queued",
                sa.and_(Tokenization.status == "running", Tokenization.claimed_until <= now),
            )
        )
        .order_by(Tokenization.created_at, Tokenization.key)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


class AccountRow(NamedTuple):
    """An organization's accounts as its last entry left them."""

    organization_id: str
    cash_nanos: int
    credit_nanos: int
    held_nanos: int
    spent_nanos: int
    last_seq: int
    last_hash: str
    last_at: datetime


class HoldRow(NamedTuple):
    """A hold as it is now."""

    job_id: str
    organization_id: str
    project_id: str
    api_key_id: str
    created_at: datetime
    resolved_at: datetime | None
    base_model: str
    method: str
    training_type: str
    billed_tokens: int
    rate_nanos: int
    price_version: str
    currency: str
    amount_nanos: int
    credit_nanos: int
    captured_nanos: int | None
    refunded_nanos: int


class BoughtRow(NamedTuple):
    """What a hold is for: only what its entry's note tells, for there are many to be read."""

    job_id: str
    project_id: str
    api_key_id: str
    base_model: str
    method: str
    training_type: str
    billed_tokens: int
    rate_nanos: int
    price_version: str
    currency: str


# Statements of the ledger are made and compiled once: to build one anew costs more than to run it.
_CHUNK_ROWS = 10_000
_CONNECTION = "ledger_connection"
_RESOLVING = ("capture", "release")
_accounts = cast("sa.Table", LedgerAccount.__table__)
_entries = cast("sa.Table", LedgerEntry.__table__)
_holds = cast("sa.Table", Hold.__table__)
_account_columns = [_accounts.c[name] for name in AccountRow._fields]
_hold_columns = [_holds.c[name] for name in HoldRow._fields]
_ACCOUNT = sa.select(*_account_columns)
_ACCOUNT_OF = _ACCOUNT.where(_accounts.c.organization_id == sa.bindparam("organization_id"))
_FIND_ACCOUNT = Prepared(_ACCOUNT_OF, _account_columns)
_LOCK_ACCOUNT = Prepared(_ACCOUNT_OF.with_for_update(), _account_columns)
_FIND_HOLD = Prepared(sa.select(*_hold_columns).where(_holds.c.job_id == sa.bindparam("job_id")), _hold_columns)
# Rows are locked in the order of the tables here: the account first, as everywhere.
_LOCK_HOLD = Prepared(
    sa.select(*_account_columns, *_hold_columns)
    .select_from(_accounts.join(_holds, _holds.c.organization_id == _accounts.c.organization_id))
    .where(_holds.c.job_id == sa.bindparam("job_id"))
    .with_for_update(),
    [*_account_columns, *_hold_columns],
)
_INSERT_ENTRY = {
    name: Prepared(
        insert(_entries).on_conflict_do_nothing(index_elements=["organization_id", "key"]).returning(_entries.c.seq)
    )
    for name, insert in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
}
_INSERT_HOLD = Prepared(sa.insert(_holds))
_RESOLVE_HOLD = Prepared(
    sa.update(_holds)
    .where(_holds.c.job_id == sa.bindparam("of_job"), _holds.c.resolved_at.is_(None))
    .values(captured_nanos=sa.bindparam("captured"), resolved_at=sa.bindparam("at", type_=_holds.c.resolved_at.type))
)
_ADD_REFUND = Prepared(
    sa.update(_holds)
    .where(_holds.c.job_id == sa.bindparam("of_job"))
    .values(refunded_nanos=_holds.c.refunded_nanos + sa.bindparam("more"))
)


def _connect(tx: Session) -> sa.Connection:
    """Return the transaction's connection, found once: the session takes a while to find it."""
    connection: sa.Connection | None = tx.info.get(_CONNECTION)
    if connection is None:
        connection = tx.info[_CONNECTION] = tx.connection()
    return connection


def find_account(tx: Session, organization_id: str) -> AccountRow | None:
    """Read an organization's accounts."""
    row = _FIND_ACCOUNT.find_row(_connect(tx), {"organization_id": organization_id})
    return None if row is None else AccountRow(*row)


def lock_account(tx: Session, organization_id: str) -> AccountRow | None:
    """Read an organization's accounts as they are now, and keep others from changing them."""
    row = _LOCK_ACCOUNT.find_row(_connect(tx), {"organization_id": organization_id})
    return None if row is None else AccountRow(*row)


def ensure_account(tx: Session, organization_id: str, *, last_hash: str, now: datetime) -> None:
    """Make an organization's empty accounts, unless they are there."""
    empty = dict.fromkeys(("cash_nanos", "credit_nanos", "held_nanos", "spent_nanos", "last_seq"), 0)
    values = {"organization_id": organization_id, **empty, "last_hash": last_hash, "last_at": now}
    tx.execute(upsert.insert(tx, _accounts).values(values).on_conflict_do_nothing())


def insert_entry(tx: Session, entry: Mapping[str, object]) -> bool:
    """Add an entry; False when the organization has one with the same key.

    A trigger brings the organization's accounts up to date with it.
    """
    connection = _connect(tx)
    return _INSERT_ENTRY[connection.dialect.name].find_row(connection, entry) is not None


def list_accounts(tx: Session) -> list[AccountRow]:
    """Return every organization's accounts."""
    return [AccountRow(*row) for row in tx.execute(_ACCOUNT.order_by(_accounts.c.organization_id))]


def list_organizations_with_entries(tx: Session) -> Sequence[str]:
    """Return the ids of the organizations that have an entry."""
    return tx.execute(sa.select(LedgerEntry.organization_id).distinct()).scalars().all()


def find_entry(tx: Session, organization_id: str, key: str) -> LedgerEntry | None:
    """Read the entry with this key."""
    statement = sa.select(LedgerEntry).where(LedgerEntry.organization_id == organization_id, LedgerEntry.key == key)
    return tx.execute(statement).scalar_one_or_none()


def list_entries(
    tx: Session,
    organization_id: str,
    *,
    start: datetime | None,
    end: datetime | None,
    job_id: str | None,
    limit: int | None,
) -> Sequence[LedgerEntry]:
    """Return entries, oldest first."""
    statement = sa.select(LedgerEntry).where(LedgerEntry.organization_id == organization_id).order_by(LedgerEntry.seq)
    if start is not None:
        statement = statement.where(LedgerEntry.created_at >= start)
    if end is not None:
        statement = statement.where(LedgerEntry.created_at < end)
    if job_id is not None:
        statement = statement.where(LedgerEntry.cause_kind == "job", LedgerEntry.cause_id == job_id)
    return tx.execute(statement.limit(limit)).scalars().all()


def stream_entries(tx: Session, organization_id: str) -> Iterator[dict[str, Any]]:
    """Yield every entry of an organization in its order, as plain columns, a chunk of them at a time."""
    names = list(_entries.c.keys())
    statement = sa.select(*_entries.c).where(_entries.c.organization_id == organization_id).order_by(_entries.c.seq)
    after = 0
    while rows := tx.execute(statement.where(_entries.c.seq > after).limit(_CHUNK_ROWS)).all():
        for row in rows:
            yield dict(zip(names, row, strict=True))
        after = rows[-1].seq


def find_last_audit(tx: Session) -> LedgerAudit | None:
    """Read what the last verification found."""
    return tx.execute(sa.select(LedgerAudit).order_by(LedgerAudit.audited_at.desc()).limit(1)).scalar_one_or_none()


def insert_audit(tx: Session, **values: object) -> None:
    """Keep what a verification found; two at the same moment are one."""
    tx.execute(upsert.insert(tx, LedgerAudit).values(**values).on_conflict_do_nothing())


def find_hold_without_entries(tx: Session, organization_id: str) -> str | None:
    """Return a job whose hold is not what its entries say: every amount, and when it was made and resolved."""
    columns, of_kind = _entries.c, partial(_sum_of_kind, _entries.c)
    said = (
        sa.select(
            columns.cause_id.label("job_id"),
            sa.func.max(sa.case((columns.kind == "hold", columns.created_at))).label("held_at"),
            sa.func.max(sa.case((columns.kind.in_(_RESOLVING), columns.created_at))).label("resolved_at"),
            of_kind(["hold"], columns.held_nanos).label("held"),
            of_kind(["hold"], -columns.credit_nanos).label("credit"),
            of_kind(_RESOLVING, columns.spent_nanos).label("captured"),
            of_kind(["refund"], -columns.spent_nanos).label("refunded"),
        )
        .where(columns.organization_id == organization_id, columns.cause_kind == "job")
        .group_by(columns.cause_id)
        .subquery()
    )
    differs = sa.or_(
        said.c.job_id.is_(None),
        Hold.created_at.is_distinct_from(said.c.held_at),
        Hold.resolved_at.is_distinct_from(said.c.resolved_at),
        Hold.amount_nanos.is_distinct_from(said.c.held),
        Hold.credit_nanos.is_distinct_from(said.c.credit),
        Hold.captured_nanos.is_distinct_from(said.c.captured),
        Hold.refunded_nanos != sa.func.coalesce(said.c.refunded, 0),
    )
    statement = (
        sa.select(Hold.job_id)
        .outerjoin(said, said.c.job_id == Hold.job_id)
        .where(Hold.organization_id == organization_id, differs)
        .order_by(Hold.created_at, Hold.job_id)
        .limit(1)
    )
    found: str | None = tx.execute(statement).scalar_one_or_none()
    return found


def _sum_of_kind(columns: Any, kinds: Sequence[str], amount: Any) -> Any:
    """Return the sum over the entries of some kinds; null where there are none."""
    return sa.func.sum(sa.case((columns.kind.in_(kinds), amount)))


def find_job_without_hold(tx: Session, organization_id: str) -> str | None:
    """Return the job of the first entry that has no hold of this organization."""
    statement = (
        sa.select(_entries.c.cause_id)
        .outerjoin(_holds, sa.and_(_holds.c.job_id == _entries.c.cause_id, _holds.c.organization_id == organization_id))
        .where(_entries.c.organization_id == organization_id, _entries.c.cause_kind == "job", _holds.c.job_id.is_(None))
        .order_by(_entries.c.seq)
        .limit(1)
    )
    found: str | None = tx.execute(statement).scalar_one_or_none()
    return found


def stream_holds(tx: Session, organization_id: str) -> Iterator[tuple[BoughtRow, int, str]]:
    """Yield what every hold of an organization is for, its amount and the note of its entry, in the entries' order."""
    statement = (
        sa.select(
            _entries.c.seq, _entries.c.note, _holds.c.amount_nanos, *(_holds.c[name] for name in BoughtRow._fields)
        )
        .join(_holds, _holds.c.job_id == _entries.c.cause_id)
        .where(_entries.c.organization_id == organization_id, _entries.c.kind == "hold")
        .order_by(_entries.c.seq)
        .limit(_CHUNK_ROWS)
    )
    after = 0
    while rows := tx.execute(statement.where(_entries.c.seq > after)).all():
        for _seq, note, amount_nanos, *columns in rows:
            yield BoughtRow(*columns), amount_nanos, note
        after = rows[-1].seq


def find_hold(tx: Session, job_id: str) -> HoldRow | None:
    """Read a job's hold."""
    row = _FIND_HOLD.find_row(_connect(tx), {"job_id": job_id})
    return None if row is None else HoldRow(*row)


def lock_hold(tx: Session, job_id: str) -> tuple[AccountRow, HoldRow]:
    """Read a job's hold and its organization's accounts as they are now, and keep others from changing them."""
    row = _LOCK_HOLD.find_row(_connect(tx), {"job_id": job_id})
    assert row is not None, f"nothing is held for {job_id}"
    split = len(AccountRow._fields)
    return AccountRow(*row[:split]), HoldRow(*row[split:])


def insert_hold(tx: Session, purchase: Mapping[str, object], *, credit_nanos: int, now: datetime) -> None:
    """Set a job's price aside."""
    values = dict(purchase)
    values["amount_nanos"] = values.pop("price_nanos")
    open_hold = {"refunded_nanos": 0, "captured_nanos": None, "resolved_at": None}
    _INSERT_HOLD.run(_connect(tx), values | open_hold | {"credit_nanos": credit_nanos, "created_at": now})


def resolve_hold(tx: Session, job_id: str, *, captured_nanos: int, now: datetime) -> None:
    """Note what became of a hold."""
    _RESOLVE_HOLD.run(_connect(tx), {"of_job": job_id, "captured": captured_nanos, "at": now})


def add_refund(tx: Session, job_id: str, nanos: int) -> None:
    """Note that so much more of a charge was given back."""
    _ADD_REFUND.run(_connect(tx), {"of_job": job_id, "more": nanos})


def sum_open_holds(tx: Session, organization_id: str) -> int:
    """Return what is held for an organization's jobs."""
    statement = sa.select(sa.func.coalesce(sa.func.sum(Hold.amount_nanos), 0)).where(
        Hold.organization_id == organization_id, Hold.resolved_at.is_(None)
    )
    return int(tx.execute(statement).scalar_one())
