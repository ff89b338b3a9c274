"""The operator's commands as processes: how they start, what they refuse, how they end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa

import server as servers
from luthier import home as home_dir
from luthier.db import Database, schema
from luthier.errors import Conflict

DEADLINE_S = 60
LUTHIER = [sys.executable, "-m", "luthier.cli"]


def has_supervisor(home) -> bool:
    try:
        with home_dir.locked(home, "supervisor"):
            return False
    except Conflict:
        return True


def wait_for_supervisor(home) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not has_supervisor(home):
        assert time.monotonic() < deadline, "no supervisor came up"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_when_asked_to_stop_takes_its_supervisor_with_it_and_exits_0(home, number):
    server = servers.start_server(home)
    wait_for_supervisor(home)
    server.stop(number)
    assert server.process.returncode == 0
    assert not has_supervisor(home)


def refuse(home, **environment: str) -> str:
    """Start a server that must not come up; return what it says, in two lines."""
    done = subprocess.run(
        [*LUTHIER, "serve", "--home", str(home), "--port", "0"],
        env={**servers.clean_environment(), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "hint: " in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u:canary@db/x", "mysql"),
        ("postgresql+nonsense://u:canary@db/x", "postgresql+nonsense"),
        ("nonsense canary", "cannot be read"),
        ("postgresql+psycopg://u:canary@127.0.0.1:1/x", "u:***@127.0.0.1:1/x: connection failed"),
        ("sqlite:////proc/canary.db", "/proc/canary.db"),
    ],
)
def test_serve_when_the_database_cannot_be_used_says_why_and_no_password(home, url, words):
    said = refuse(home, LUTHIER_DATABASE_URL=url)
    assert words in said
    assert "canary" not in said.replace("/proc/canary.db", "")


def test_serve_when_the_database_is_damaged_says_so(home):
    (home / "luthier.db").write_bytes(b"garbage" * 1000)
    assert "file is not a database" in refuse(home)


def test_serve_when_the_schema_is_newer_says_so(home):
    database = Database(f"sqlite:///{home / 'luthier.db'}")
    schema.upgrade(database)
    with database.transaction() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.dispose()
    assert "9999" in refuse(home)


def test_serve_when_a_setting_is_replaced_by_an_option_its_supervisor_comes_up_too(home):
    with servers.running(home, environment={"LUTHIER_PORT": "nonsense"}):
        wait_for_supervisor(home)
