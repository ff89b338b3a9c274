"""What of the database's errors is the world's: a full disk, a file that cannot be written, a server that is gone."""

from __future__ import annotations

import sqlite3
from typing import Literal

from sqlalchemy import exc
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from luthier.db.session import Database
from luthier.errors import Unavailable

Outage = Literal["full", "unwritable", "busy", "unreachable"]

# The primary code is the low byte of what the library reports. A missing table has another, and is our own fault.
_SQLITE: dict[int, Outage] = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_READONLY: "unwritable",
    sqlite3.SQLITE_IOERR: "unwritable",
    sqlite3.SQLITE_CANTOPEN: "unwritable",
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
}
_POSTGRESQL: dict[str, Outage] = {
    "53100": "full",
    "25006": "unwritable",  # a standby, or an administrator made it read-only
    "40001": "busy",  # serialization failure
    "40P01": "busy",  # deadlock
    "55P03": "busy",  # lock not available
    "57014": "busy",  # cancelled by a time limit
    "53300": "busy",  # too many connections
}
_WORDS: dict[Outage, str] = {
    "unwritable": "cannot be written to",
    "busy": "is busy with other requests",
    "unreachable": "cannot be reached",
}
RETRY_AFTER_S = 5


def find_outage(error: SQLAlchemyError) -> Outage | None:
    """Return what the world does to the database; None when the error is our own."""
    if isinstance(error, exc.TimeoutError):  # every connection of the pool is taken
        return "busy"
    if not isinstance(error, DBAPIError):
        return None
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE.get(code & 0xFF)
    known = _POSTGRESQL.get(getattr(error.orig, "sqlstate", None) or "")
    return known or ("unreachable" if isinstance(error, exc.OperationalError | exc.InterfaceError) else None)


def describe(outage: Outage) -> Unavailable:
    """Return what a caller is told. Whether a change was kept is known only where the disk was full."""
    if outage == "full":
        return Unavailable(
            "disk_full",
            "the server's disk is full: nothing of this was kept",
            hint="delete files and old jobs, or ask the operator for space; then send the request again",
            retry_after_s=RETRY_AFTER_S,
        )
    return Unavailable(
        "database_unavailable",
        f"the server's database {_WORDS[outage]}",
        hint="send the request again in a moment; if it stays so, tell the operator, whose GET /readyz shows it too",
        retry_after_s=RETRY_AFTER_S,
    )


def describe_at_start(database: Database, error: SQLAlchemyError) -> Unavailable:
    """Return what an operator is told whose server cannot start: which database, why, and what to look at."""
    url = database.engine.url.render_as_string(hide_password=True)
    reason = str(error.orig if isinstance(error, DBAPIError) else error).partition("\n")[0]
    hint = (
        "check that the disk has space and the file may be written to, or restore the file from a backup"
        if database.is_sqlite
        else "check that the server runs, and user, host and name in LUTHIER_DATABASE_URL"
    )
    return Unavailable("database_unusable", f"the database cannot be used: {url}: {reason}", hint=hint)
