"""Every statement on the tables of tokenizations, the ledger and holds, named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from luthier.billing.tables import Hold, LedgerAccount, LedgerEntry, Tokenization
from luthier.db import Session


def find_row(tx: Session, key: str) -> Tokenization | None:
    """Read a tokenization."""
    return tx.execute(sa.select(Tokenization).where(Tokenization.key == key)).scalar_one_or_none()


def find_row_for_update(tx: Session, key: str) -> Tokenization | None:
    """Read a tokenization as it is now, and keep others from changing it until the transaction ends."""
    statement = sa.select(Tokenization).where(Tokenization.key == key).with_for_update()
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


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


_FRESH = {"populate_existing": True}
_CHUNK_ROWS = 10_000


def find_account(tx: Session, organization_id: str) -> LedgerAccount | None:
    """Read an organization's accounts."""
    return tx.get(LedgerAccount, organization_id)


def lock_account(tx: Session, organization_id: str) -> LedgerAccount | None:
    """Read an organization's accounts as they are now, and keep others from changing them."""
    statement = sa.select(LedgerAccount).where(LedgerAccount.organization_id == organization_id).with_for_update()
    return tx.execute(statement, execution_options=_FRESH).scalar_one_or_none()


def list_accounts(tx: Session) -> Sequence[LedgerAccount]:
    """Return every organization's accounts."""
    return tx.execute(sa.select(LedgerAccount).order_by(LedgerAccount.organization_id)).scalars().all()


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


def stream_entries(tx: Session, organization_id: str) -> Iterator[sa.Row[Any]]:
    """Yield every entry of an organization in its order, as plain columns, a chunk of them at a time."""
    columns = LedgerEntry.__table__.columns
    statement = sa.select(*columns).where(columns.organization_id == organization_id).order_by(columns.seq)
    after = 0
    while rows := tx.execute(statement.where(columns.seq > after).limit(_CHUNK_ROWS)).all():
        yield from rows
        after = rows[-1].seq


def find_hold(tx: Session, job_id: str) -> Hold | None:
    """Read a job's hold."""
    return tx.get(Hold, job_id)


def get_hold(tx: Session, job_id: str) -> Hold:
    """Read a job's hold."""
    row = find_hold(tx, job_id)
    assert row is not None, f"nothing is held for {job_id}"
    return row


def lock_hold(tx: Session, job_id: str) -> Hold:
    """Read a job's hold as it is now, and keep others from changing it."""
    statement = sa.select(Hold).where(Hold.job_id == job_id).with_for_update()
    return tx.execute(statement, execution_options=_FRESH).scalar_one()


def sum_open_holds(tx: Session, organization_id: str) -> int:
    """Return what is held for an organization's jobs."""
    statement = sa.select(sa.func.coalesce(sa.func.sum(Hold.amount_nanos), 0)).where(
        Hold.organization_id == organization_id, Hold.resolved_at.is_(None)
    )
    return int(tx.execute(statement).scalar_one())
