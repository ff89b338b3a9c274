"""The operator's commands as processes: how they start, what they refuse, how they end."""

from __future__ import annotations

import signal
import time

import pytest

import server as servers
from luthier import home as home_dir
from luthier.errors import Conflict

DEADLINE_S = 60


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
