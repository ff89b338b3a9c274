"""``INSERT … ON CONFLICT``, which both databases know and SQLAlchemy has once a dialect."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite

from luthier.db.session import Session

_INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def insert(tx: Session, target: Any) -> Any:
    """Return an insert into a table or class that has ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    return _INSERT[tx.get_bind().dialect.name](target)
