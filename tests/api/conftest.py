"""A running service for tests of the HTTP surface: the real app over a real server on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import factories
from luthier import home as home_dir
from luthier.accounts import service as accounts
from luthier.api.server import Connection, Server, make_config
from luthier.app import build_app
from luthier.billing import opening
from luthier.billing.money import NANOS_A_UNIT
from luthier.billing.policy import make_policy
from luthier.clock import ManualClock
from luthier.db import Database
from luthier.settings import Settings
from luthier.storage import DiskStore, ObjectStore

START_TIMEOUT_S = 10


@dataclass(frozen=True)
class Service:
    """Everything that a test may want to look at from outside and from inside."""

    base_url: str
    api_key: str  # an admin key of the default project
    settings: Settings
    home: Path
    database: Database
    store: ObjectStore
    clock: ManualClock
    master_key: bytes

    def connect(self, api_key: str | None = None) -> httpx.Client:
        """Return a client that sends ``api_key`` (the admin key, when left out) and follows no redirects."""
        key = self.api_key if api_key is None else api_key
        return httpx.Client(base_url=self.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=10)

    def make_key(self, *, is_admin: bool = False) -> str:
        """Return a new key of the default project."""
        with self.database.transaction() as tx:
            admin = accounts.authenticate(tx, self.api_key, master_key=self.master_key, now=self.clock.now())
            return make_key(self, tx, admin.project_id, is_admin=is_admin)


@pytest.fixture
def settings(home) -> Settings:
    """Settings of the service under test; a module that needs others overrides this fixture."""
    return Settings(home=home, disk_reserve_bytes=0)


@pytest.fixture
def run_service():
    """How to run a service with a store, a database or settings of a test's own."""
    return _run_service


@pytest.fixture
def service(settings, database, clock) -> Iterator[Service]:
    """The service on a free port, with a new home and an empty store; once on each database."""
    with _run_service(settings, database, DiskStore(settings.objects_dir), clock) as running:
        yield running


@pytest.fixture
def second_service(settings, service) -> Iterator[Service]:
    """Another server on the same database, store and home; it has no key of its own."""
    with _run_service(settings, service.database, service.store, service.clock) as running:
        yield running


@pytest.fixture
def client(service) -> Iterator[httpx.Client]:
    """A client with the admin key of the default project."""
    with service.connect() as client:
        yield client


@pytest.fixture
def other_project_key(service) -> str:
    """An admin key of another project of another organization, which must see nothing of the first."""
    with service.database.transaction() as tx:
        now = service.clock.now()
        organization_id = accounts.create_organization(tx, name="Other", now=now)
        project_id = accounts.create_project(tx, organization_id=organization_id, name="Other", slug="other", now=now)
        factories.give(tx, organization_id, 100 * NANOS_A_UNIT, now=now)
        return make_key(service, tx, project_id, is_admin=True)


def make_key(service: Service, tx: Any, project_id: str, *, is_admin: bool) -> str:
    _, secret = accounts.create_key(
        tx,
        project_id=project_id,
        name="test",
        is_admin=is_admin,
        expires_at=None,
        master_key=service.master_key,
        now=service.clock.now(),
    )
    return secret


@contextmanager
def _run_service(
    settings: Settings,
    database: Database,
    store: ObjectStore | None,
    clock: ManualClock,
    *,
    connection: type[Connection] = Connection,
) -> Iterator[Service]:
    """Serve the real app on a free port for the length of the block; without a store, on the one under home."""
    master_key = home_dir.prepare(settings)
    store = store or DiskStore(settings.objects_dir)
    with database.transaction() as tx:
        api_key = accounts.bootstrap(tx, master_key=master_key, now=clock.now())
        opening.grant_opening_credit(tx, make_policy(settings), now=clock.now())
    app = build_app(settings, database=database, store=store, clock=clock)
    server = Server(make_config(app, connection=connection, shutdown_grace_s=1))
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        yield Service(
            base_url=f"http://127.0.0.1:{_wait_for_port(server, thread)}",
            api_key=api_key,
            settings=settings,
            home=settings.home,
            database=database,
            store=store,
            clock=clock,
            master_key=master_key,
        )
    finally:
        server.should_exit = True
        thread.join(timeout=START_TIMEOUT_S)
        assert not thread.is_alive(), "the server did not stop"


def _wait_for_port(server: Server, thread: threading.Thread) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        assert thread.is_alive(), "the server ended while starting"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.005)
    return server.servers[0].sockets[0].getsockname()[1]
