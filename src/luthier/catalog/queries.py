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
    """Return the row of this name, removed or not, locked until the transaction ends."""
    return tx.execute(sa.select(BaseModelRow).where(BaseModelRow.name == name).with_for_update()).scalar_one_or_none()


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
