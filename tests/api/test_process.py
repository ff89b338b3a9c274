"""What needs a process of its own: how it ends when the disk fails, and what it writes to its log."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest

from luthier import home as home_dir
from luthier.accounts import service as accounts
from luthier.api.errors import EXIT_STORAGE_FAILED
from luthier.billing import opening
from luthier.billing.policy import make_policy
from luthier.clock import SystemClock
from luthier.db import Database, schema
from luthier.errors import NotFound
from luthier.files import service as files
from luthier.settings import Settings

SCRIPT = """
import errno, os, sys
from pathlib import Path

from luthier import log
from luthier.api import server
from luthier.app import build_app
from luthier.settings import Settings
from luthier.storage import DiskStore


def fail(fd):
    raise OSError(errno.EIO, "the medium failed")


settings = Settings(home=Path(sys.argv[1]), disk_reserve_bytes=0)
log.configure(level="debug", as_json=True)
store = DiskStore(settings.objects_dir, fsync=fail if sys.argv[2] == "broken" else os.fsync)


class Server(server.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


Server(server.make_config(build_app(settings, store=store))).run()
"""

DATA = b'{"text": "hello"}\n'
FIELDS = {"file_name": "train.jsonl", "purpose": "fine-tune", "file_type": "jsonl"}


@pytest.fixture
def settings(home):
    return Settings(home=home)


@pytest.fixture
def sqlite(settings):
    database = Database(settings.resolved_database_url)
    schema.upgrade(database)
    yield database
    database.dispose()


@pytest.fixture
def admin_key(settings, sqlite):
    with sqlite.transaction() as tx:
        key = accounts.bootstrap(tx, master_key=home_dir.prepare(settings), now=SystemClock().now())
        opening.grant_opening_credit(tx, make_policy(settings), now=SystemClock().now())
    return key


@contextmanager
def serve(home, disk, admin_key):
    """Run the script; yield the process and a client."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(home), disk], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        base_url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        with httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {admin_key}"}, timeout=60) as client:
            yield process, client
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_upload_when_fsync_fails_is_503_then_the_process_ends_and_no_row_is_there(home, sqlite, admin_key):
    with serve(home, "broken", admin_key) as (process, client):
        asked = client.post("/v1/files", data=FIELDS)
        response = client.put(asked.headers["Location"], content=DATA)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "storage_failed"
        assert process.wait(timeout=30) == EXIT_STORAGE_FAILED
    with pytest.raises(NotFound), sqlite.read() as tx:
        principal = accounts.authenticate(
            tx, admin_key, master_key=home_dir.prepare(Settings(home=home)), now=SystemClock().now()
        )
        files.get_file(tx, principal.project_id, asked.headers["X-Together-File-Id"])


def test_log_tells_every_request_and_no_secret(home, admin_key):
    with serve(home, "sound", admin_key) as (process, client):
        asked = client.post("/v1/files", data=FIELDS)
        token = asked.headers["Location"].partition("token=")[2]
        assert client.put(asked.headers["Location"], content=DATA).status_code == 200
        secret = client.post("/api/keys", json={"name": "ci"}).json()["secret"]
        client.get("/v1/files", headers={"Authorization": "Bearer lk-" + "s" * 43})
        request_id = client.get(f"/v1/files?key={admin_key}").headers["x-request-id"]
        process.terminate()
        output, errors = process.communicate(timeout=30)
    log = output + errors
    assert '"path": "/v1/uploads/' in log
    assert request_id in log
    for canary in (token, admin_key, secret, "s" * 43):
        assert canary not in log
