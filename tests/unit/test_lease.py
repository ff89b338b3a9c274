from __future__ import annotations

import subprocess
import sys

import pytest

from luthier.protocol import lease

WATCHED = """
import pathlib, sys, time
from luthier.protocol.journal import JournalWriter
from luthier.training.watch import LeaseWatch
path = pathlib.Path(sys.argv[1])
LeaseWatch(path, 0.2, JournalWriter(path.with_name("journal.jsonl"))).start()
time.sleep(1.0)
print("alive", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("text", "term_s"), [("", 30.0), ("600", 600.0), ("soon", 30.0)])
def test_term_is_the_grace_that_was_granted_or_the_specs(tmp_path, text, term_s):
    (tmp_path / "lease").write_text(text)
    assert lease.read_term_s(tmp_path / "lease", 30.0) == term_s


def test_term_when_the_file_is_missing_is_the_specs(tmp_path):
    assert lease.read_term_s(tmp_path / "lease", 30.0) == 30.0


def test_touch_takes_a_grace_back(tmp_path):
    path = tmp_path / "lease"
    lease.grant(path, 600.0)
    lease.touch(path)
    assert lease.read_term_s(path, 30.0) == 30.0


def test_worker_lives_as_long_as_its_grace_and_no_longer_than_its_lease(tmp_path):
    path = tmp_path / "lease"
    lease.grant(path, 600.0)
    with subprocess.Popen([sys.executable, "-c", WATCHED, str(path)], stdout=subprocess.PIPE) as worker:
        assert worker.stdout.readline() == b"alive\n"
        lease.touch(path)
        assert worker.wait(timeout=30) == 1
    assert '"lease_lost"' in (tmp_path / "journal.jsonl").read_text()
