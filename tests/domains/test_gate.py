"""Waits for the right to write: in turn, with an end, and without anything left locked by who gave up."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from luthier.db.gate import FairLock, WriteGate
from luthier.errors import Unavailable
from supervision import wait_until

HOLDER = """
import pathlib, sys, time
from luthier.db.gate import WriteGate
with WriteGate(pathlib.Path(sys.argv[1])).entered():
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "luthier.db.gate"


@pytest.fixture
def holder(path):
    """Another process, stopped while it may write."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in\n"
    os.kill(process.pid, signal.SIGSTOP)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_writer_when_another_process_is_stopped_in_a_transaction_gives_up(path, holder):
    gate = WriteGate(path, timeout_s=0.2)
    others = _thread._count()
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"for 0\.2 s") as refusal, gate.entered():
            pytest.fail("two write at once")
        assert (refusal.value.code, refusal.value.status) == ("database_busy", 503)
    assert _thread._count() == others + 1  # one waits on, however many gave up
    holder.kill()
    wait_until(lambda: can_enter(gate), what="the gate is open again")


def test_gate_when_all_who_waited_gave_up_is_open_to_others(path, holder):
    impatient = WriteGate(path, timeout_s=0.2)
    assert not can_enter(impatient)
    holder.kill()
    wait_until(lambda: can_enter(WriteGate(path, timeout_s=0.2)), what="the lock that came too late was let go")
    assert can_enter(impatient)


def test_gate_when_a_waiter_comes_back_in_time_is_entered(path, holder):
    gate = WriteGate(path, timeout_s=0.2)
    assert not can_enter(gate)
    patient = threading.Thread(target=lambda: wait_until(lambda: can_enter(gate), what="the gate is open"))
    patient.start()
    holder.kill()
    patient.join()
    assert can_enter(WriteGate(path, timeout_s=5.0))


def test_thread_when_another_holds_the_gate_gives_up_and_the_next_gets_it(path):
    gate = WriteGate(path, timeout_s=0.2)
    with gate.entered():
        refused = []
        thread = threading.Thread(target=lambda: refused.append(not can_enter(gate)))
        thread.start()
        thread.join()
    assert refused == [True]
    assert can_enter(gate)


def test_lock_when_granted_while_one_gives_up_is_not_lost():
    lock = FairLock()
    for _ in range(200):  # the release falls before, into and after the moment of giving up
        assert lock.acquire(1.0)
        got = []
        thread = threading.Thread(target=lambda got=got: got.append(lock.acquire(0.0005)))
        thread.start()
        lock.release()
        thread.join()
        if got == [True]:
            lock.release()


def test_waits_for_rows_and_idle_transactions_have_an_end_on_postgresql(database):
    if not database.is_sqlite:
        with database.read() as tx:
            limits = [tx.scalar(sa.text(f"SHOW {name}")) for name in LIMITS]
        assert limits == ["30s", "1min"]


LIMITS = ("lock_timeout", "idle_in_transaction_session_timeout")


def can_enter(gate: WriteGate) -> bool:
    try:
        with gate.entered():
            return True
    except Unavailable:
        return False
