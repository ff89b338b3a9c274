"""The operator's commands as processes: how they start, what they refuse, how they end."""

from __future__ import annotations

import os
import shlex
import signal
import stat
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


@pytest.fixture
def used_home(home):
    """A home that was served once, and its admin key."""
    with servers.running(home) as server:
        pass
    return home, server.api_key


def test_serve_when_master_key_is_gone_makes_no_other(used_home):
    home, _ = used_home
    key = (home / "master.key").read_bytes()
    (home / "master.key").unlink()
    assert "master.key is missing" in refuse(home)
    assert not (home / "master.key").exists()
    (home / "master.key").write_bytes(key[:-1])
    assert "31 bytes, not 32" in refuse(home)
    (home / "master.key").write_bytes(key)
    with servers.running(home):
        pass


def test_serve_when_master_key_is_another_is_refused(used_home, tmp_path):
    """Two homes on one database: the second must be given the first one's key."""
    home, _ = used_home
    other = tmp_path / "other"
    other.mkdir()
    url = f"sqlite:///{home / 'luthier.db'}"
    assert "master.key is missing" in refuse(other, LUTHIER_DATABASE_URL=url)
    (other / "master.key").write_bytes(b"k" * 32)
    assert "not the one that the database was set up with" in refuse(other, LUTHIER_DATABASE_URL=url)
    (other / "master.key").write_bytes((home / "master.key").read_bytes())
    with servers.running(other, environment={"LUTHIER_DATABASE_URL": url}):
        pass


def test_serve_when_home_is_open_to_others_closes_it(home):
    home.chmod(0o755)
    umask = os.umask(0o022)
    try:
        with servers.running(home):
            wait_for_supervisor(home)
            names = ("", "luthier.db", "luthier.db-wal", "luthier.db-shm", "master.key", "credentials.json")
            modes = {name: stat.S_IMODE((home / name).stat().st_mode) for name in names}
    finally:
        os.umask(umask)
    assert modes == {name: 0o600 if name else 0o700 for name in names}


def test_serve_announces_a_command_that_finds_it(tmp_path):
    home = tmp_path / "a home"
    with servers.running(home) as server:
        [line] = [line for line in server.read_log().splitlines() if line.startswith("  try ")]
        words = shlex.split(line)
        assert words[1:3] == [f"LUTHIER_HOME={home}", "luthier"]
        environment = {**servers.clean_environment(), "LUTHIER_HOME": str(home)}
        done = subprocess.run([*LUTHIER, "whoami"], env=environment, capture_output=True, text=True, check=True)
        assert server.base_url in done.stdout
    with servers.running(home, environment={"LUTHIER_HOME": str(home)}) as server:
        assert "  try       luthier ft create" in server.read_log()


def test_serve_when_the_user_is_logged_in_elsewhere_keeps_the_login_and_makes_no_key(used_home):
    home, _ = used_home
    login = home_dir.Credentials("https://tune.example.org", "lk-elsewhere", is_login=True)
    home_dir.write_credentials(home, login)
    with servers.running(home) as server:
        said = server.read_log()
    assert home_dir.find_credentials(home) == login
    assert "is a login to https://tune.example.org" in said
    assert "admin key" not in said
    assert count_keys(home) == 1


def test_serve_when_its_own_credentials_do_not_work_makes_a_key(used_home):
    home, _ = used_home
    home_dir.write_credentials(home, home_dir.Credentials("http://127.0.0.1:1", "lk-lost"))
    with servers.running(home) as server:
        assert server.api_key in server.read_log()
    assert count_keys(home) == 2


def count_keys(home) -> int:
    database = Database(f"sqlite:///{home / 'luthier.db'}")
    with database.read() as tx:
        count = tx.scalar(sa.text("SELECT count(*) FROM api_keys"))
    database.dispose()
    return count
