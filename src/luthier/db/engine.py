"""Engines for both databases, with what each needs to lose nothing."""

from __future__ import annotations

import select
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError

from luthier.errors import ServiceError

SQLITE_MIN_VERSION = (3, 51, 3)  # before it, two connections that reset the WAL at once can lose commits
BUSY_TIMEOUT_MS = 30_000
CONNECT_TIMEOUT_S = 10  # an address that answers nothing would else be tried for minutes
# Nobody waits for ever for a row whose owner is stopped in the middle of a transaction, and that one is ended.
POSTGRESQL_OPTIONS = "-c lock_timeout=30s -c idle_in_transaction_session_timeout=60s"
URL_HINT = "set LUTHIER_DATABASE_URL to sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME, or leave it unset"
BEGIN_OPTION = "luthier_begin"  # execution option: the statement that opens a transaction on SQLite


class UnsupportedDatabase(ServiceError):
    """The database cannot be used safely."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__("unsupported_database", message, hint=hint)


def create_engine(url: str) -> sa.Engine:
    """Return an engine for a SQLite file or a PostgreSQL database.

    Raises UnsupportedDatabase for another kind, for one whose driver is not installed, or for a SQLite library that
    can lose commits.
    """
    parsed = _parse_url(url)
    match parsed.get_backend_name(), parsed.drivername:
        case "sqlite", _:
            return _create_sqlite_engine(parsed)
        case "postgresql", "postgresql" | "postgresql+psycopg":
            return _create_postgresql_engine(parsed.set(drivername="postgresql+psycopg"))
    raise UnsupportedDatabase(f"this kind of database is not supported: {parsed.drivername}", URL_HINT)


def _parse_url(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except ArgumentError:  # the text may hold a password: it is not repeated
        raise UnsupportedDatabase("the database's URL cannot be read", URL_HINT) from None


def _create_postgresql_engine(url: sa.URL) -> sa.Engine:
    connect_args: dict[str, Any] = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    connect_args["options"] = f"{url.query.get('options', '')} {POSTGRESQL_OPTIONS}".lstrip()
    try:
        engine = sa.create_engine(url, pool_size=10, max_overflow=20, connect_args=connect_args)
    except ModuleNotFoundError:
        raise UnsupportedDatabase(
            "the driver for PostgreSQL is not installed: psycopg", "install it with: pip install 'luthier[postgres]'"
        ) from None

    @event.listens_for(engine, "checkout")
    def require_alive(connection: Any, _record: Any, _proxy: Any) -> None:
        # A server that went away has closed the socket, which can be read then: no round trip is needed to see it.
        if connection.closed or select.select([connection.fileno()], [], [], 0)[0]:
            raise sa.exc.DisconnectionError("the server has closed the connection")

    return engine


def _create_sqlite_engine(url: sa.URL) -> sa.Engine:
    module = _sqlite_module()
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url, module=module, connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000}, pool_size=20
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver opens no transactions of its own: "begin" below does
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # an acknowledged commit survives power loss; NORMAL loses some
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA trusted_schema=OFF")
        cursor.execute("PRAGMA recursive_triggers=ON")  # else INSERT OR REPLACE gets round a trigger on DELETE
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A write transaction takes the write lock at once: one that reads first and then writes would fail
        # with SQLITE_BUSY whenever another wrote in between.
        connection.exec_driver_sql(connection.get_execution_options().get(BEGIN_OPTION, "BEGIN"))

    return engine


def _sqlite_module() -> Any:
    try:
        import pysqlite3 as module  # noqa: PLC0415  bundles a current SQLite; only on Linux
    except ImportError:
        import sqlite3 as module  # noqa: PLC0415
    if module.sqlite_version_info < SQLITE_MIN_VERSION:
        raise UnsupportedDatabase(
            f"this SQLite can lose commits, which is fixed in 3.51.3: {module.sqlite_version}",
            "install pysqlite3>=0.6.1, or use PostgreSQL through LUTHIER_DATABASE_URL",
        )
    return module
