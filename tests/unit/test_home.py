from __future__ import annotations

import multiprocessing
import stat
import subprocess
import sys

import pytest

from luthier import home
from luthier.errors import Conflict
from luthier.settings import Settings


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_prepare_makes_everything_private_and_keeps_the_key(tmp_path):
    settings = Settings(home=tmp_path / "new" / "home")
    key = home.prepare(settings)
    assert home.prepare(settings) == key
    assert len(key) == 32
    assert mode(settings.home) == 0o700
    assert mode(settings.home / "master.key") == 0o600


def test_prepare_when_two_processes_start_at_once_agree_on_the_key(tmp_path):
    settings = Settings(home=tmp_path / "home")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        keys = pool.map(home.prepare, [settings] * 8)
    assert len(set(keys)) == 1


def test_credentials_round_trip_private(tmp_path):
    assert home.find_credentials(tmp_path) is None
    credentials = home.Credentials(base_url="http://127.0.0.1:4400", api_key="lk-x")
    home.write_credentials(tmp_path, credentials)
    home.write_credentials(tmp_path, credentials)
    assert home.find_credentials(tmp_path) == credentials
    assert mode(tmp_path / "credentials.json") == 0o600


def test_credentials_when_file_is_broken_are_none(tmp_path):
    (tmp_path / "credentials.json").write_text("{")
    assert home.find_credentials(tmp_path) is None


def test_locked_when_another_process_lives_names_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from luthier import home\n"
        "with home.locked(Path(sys.argv[1]), 'serve'): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(Conflict, match=str(process.pid)) as caught, home.locked(tmp_path, "serve"):
        pass
    assert "--home" in caught.value.hint
    with home.locked(tmp_path, "supervisor"):
        pass  # another role's lock is free
    process.kill()
    process.communicate()
    with home.locked(tmp_path, "serve"):
        pass  # a dead holder's lock is free at once
