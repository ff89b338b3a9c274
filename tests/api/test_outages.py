"""When the database cannot: a full disk, a server that is gone. Nothing is a 500, and what only reads goes on."""

from __future__ import annotations

import contextlib
import uuid

import pytest
import sqlalchemy as sa

import disks
import factories
from luthier.accounts import service as accounts
from luthier.db import Database, outages, schema

MIB = 1024 * 1024
CREATES_MAX = 500


def get_outage(response) -> tuple[int, str]:
    error = response.json()["error"]
    assert error["hint"]
    assert int(response.headers["retry-after"]) > 0
    return response.status_code, error["code"]


@pytest.fixture
def full_disk_service(settings, clock, tmp_path, run_service):
    """A service whose database is on a disk of its own, and a function that fills it."""
    with disks.small_disk(tmp_path / "small", 4 * MIB) as root:
        database = Database(f"sqlite:///{root / 'luthier.db'}")
        schema.upgrade(database)
        filler = root / "filler"

        def fill() -> None:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(b"x" * 4096) == 4096:
                    pass

        with run_service(settings, database, None, clock) as service:
            yield service, fill, filler.unlink
        database.dispose()


def test_disk_when_full_refuses_what_writes_serves_what_reads_and_recovers(full_disk_service):
    service, fill, empty = full_disk_service
    with service.connect() as client:
        fill()
        answers = (client.post("/api/keys", json={"name": "n" * 100}) for _ in range(CREATES_MAX))
        refused = next(answer for answer in answers if answer.status_code != 201)  # the log has some room of its own
        assert get_outage(refused) == (503, "disk_full")
        service.clock.advance(3600)  # the key's use is to be noted again, which cannot be done
        assert client.get("/v1/files").status_code == 200
        assert client.get("/api/keys").status_code == 200
        empty()
        assert client.post("/api/keys", json={"name": "ci"}).status_code == 201


def test_create_when_free_space_is_below_the_reserve_is_refused_and_makes_no_job(
    settings, database, clock, run_service
):
    settings = settings.model_copy(update={"disk_reserve_bytes": 2**60})
    with run_service(settings, database, None, clock) as service, service.connect() as client:
        with database.transaction() as tx:
            owner = accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=clock.now())
            inputs = factories.make_inputs(tx, owner, now=clock.now())
        response = client.post("/v1/fine-tunes", json={"model": inputs.model, "training_file": inputs.training_file})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "disk_full")
        assert client.get("/v1/fine-tunes").json()["data"] == []


@pytest.fixture
def closable(postgres_url):
    """A PostgreSQL database, and functions that close it to everybody and open it again."""
    name = f"t{uuid.uuid4().hex}"
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")

    def run(statement: str) -> None:
        with admin.connect() as connection:
            connection.execute(sa.text(statement))

    def close() -> None:
        run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    run(f"CREATE DATABASE {name}")
    database = Database(sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False))
    schema.upgrade(database)
    yield database, close, lambda: run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    database.dispose()
    admin.dispose()


def test_postgresql_when_gone_is_503_and_when_back_all_is_as_before(closable, settings, clock, run_service):
    database, close, open_again = closable
    with run_service(settings, database, None, clock) as service, service.connect() as client:
        close()
        assert get_outage(client.get("/v1/files")) == (503, "database_unavailable")
        assert get_outage(client.post("/api/keys", json={"name": "ci"})) == (503, "database_unavailable")
        assert client.get("/healthz").status_code == 200
        open_again()
        assert client.get("/v1/files").status_code == 200


def test_error_of_our_own_is_no_outage(database):
    with pytest.raises(sa.exc.DBAPIError) as caught, database.read() as tx:
        tx.execute(sa.text("SELECT * FROM nowhere"))
    assert outages.find_outage(caught.value) is None
