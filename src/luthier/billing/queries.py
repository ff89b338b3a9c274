"""Every statement on the table of tokenizations, named."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from luthier.billing.tables import Tokenization
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
