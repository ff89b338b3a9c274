"""Every query on base models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from luthier.catalog.tables import BaseModelRow
from luthier.db import Session


def find_row(tx: Session, name: str) -> BaseModelRow | None:
    """Return the row of this name, removed or not."""
    return tx.get(BaseModelRow, name)


def find_row_for_update(tx: Session, name: str) -> BaseModelRow | None:
    """Return the row of this name, removed or not, locked for changes until the transaction ends.

    Not against ``find_row_to_keep``: two who keep it may both come to change it, and must not wait for each other.
    """
    statement = sa.select(BaseModelRow).where(BaseModelRow.name == name).with_for_update(key_share=True)
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


def find_row_to_remove(tx: Session, name: str) -> BaseModelRow | None:
    """Return the row of this name, removed or not, locked: whoever wants to keep it waits."""
    statement = sa.select(BaseModelRow).where(BaseModelRow.name == name).with_for_update()
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


def find_row_to_keep(tx: Session, name: str) -> BaseModelRow | None:
    """Return the row of this name, removed or not; until the transaction ends nobody can lock it to remove it.

    Its other columns may still be changed by others: fetches go on.
    """
    statement = sa.select(BaseModelRow).where(BaseModelRow.name == name).with_for_update(read=True, key_share=True)
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


def list_rows(tx: Session) -> Sequence[BaseModelRow]:
    """Return the models that were not removed, built-ins first, then by name."""
    query = (
        sa.select(BaseModelRow)
        .where(BaseModelRow.removed_at.is_(None))
        .order_by(BaseModelRow.is_builtin.desc(), BaseModelRow.name)
    )
    return tx.execute(query).scalars().all()


def find_claimable_row(tx: Session, now: datetime) -> BaseModelRow | None:
    """Return the oldest model to fetch, locked: queued and due, or claimed by someone whose time is up."""
    is_due = sa.or_(BaseModelRow.claimed_until.is_(None), BaseModelRow.claimed_until <= now)
    query = (
        sa.select(BaseModelRow)
        .where(BaseModelRow.removed_at.is_(None), BaseModelRow.status.in_(["queued", "fetching"]), is_due)
        .order_by(BaseModelRow.created_at, BaseModelRow.name)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return tx.execute(query).scalar_one_or_none()
