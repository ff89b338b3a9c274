"""Sessions: ``transaction()`` is the only place that commits, ``read()`` sees one consistent snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from luthier import faults
from luthier.db.engine import BEGIN_OPTION, create_engine
from luthier.db.gate import WriteGate

__all__ = ["Database", "Session"]

RESHAPE_LOCK = 0x6C757468  # "luth": an advisory lock is known by its number alone
RESHAPE_TIMEOUT_S = 600  # another process may be bringing large tables up to date


class Database:
    """One database, shared by every thread of a process."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = create_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._writer = self.engine.execution_options(**{BEGIN_OPTION: "BEGIN IMMEDIATE"})
        self._gate: WriteGate | None = None
        if self.is_sqlite and self.engine.url.database:
            self._gate = WriteGate(Path(self.engine.url.database + ".gate"))

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a write transaction; commit at the end, roll back on any exception.

        Keep it short: no network, no store, no waiting inside. Raises Unavailable when another process does
        not let go of the file.
        """
        with self._enter_gate(), Session(self._writer, expire_on_commit=False) as session:
            yield session
            faults.hit("transaction.before_commit")
            session.commit()
            faults.hit("transaction.after_commit")

    def _enter_gate(self) -> AbstractContextManager[None]:
        return self._gate.entered() if self._gate else nullcontext()

    @contextmanager
    def reshaping(self) -> Iterator[sa.Connection]:
        """Open a transaction for a change of the schema: no other of these runs at the same time, in any process."""
        with self._enter_gate(), self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.execute(sa.text(f"SET LOCAL lock_timeout = '{RESHAPE_TIMEOUT_S}s'"))
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(RESHAPE_LOCK)))
            yield connection

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a read-only view of one moment; whatever is changed in it is thrown away."""
        with Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            if not self.is_sqlite:
                session.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield session

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()
