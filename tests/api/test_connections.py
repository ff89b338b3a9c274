"""Connections that say nothing, or too little: they are closed in time, and meanwhile others are served."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from luthier.api.server import Connection
from luthier.settings import Settings

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # none of this meets the database

SLOW_SOCKETS = 200
DEADLINE_S = 15
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


class Impatient(Connection):
    head_timeout_s = 1.0


@pytest.fixture
def service(settings: Settings, database, clock, run_service):
    with run_service(settings, database, None, clock, connection=Impatient) as running:
        yield running


def connect(service) -> socket.socket:
    parts = urlsplit(service.base_url)
    return socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S)


def send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # the server may have closed it by now
        connection.send(data)


def is_closed(connection: socket.socket, *, wait_s: float = 0) -> bool:
    """Tell whether the server has closed the connection; what it sent before is dropped."""
    while select.select([connection], [], [], wait_s)[0]:
        try:
            if not connection.recv(4096):
                return True
        except ConnectionError:
            return True
    return False


def measure_health(service) -> float:
    started = time.monotonic()
    assert httpx.get(f"{service.base_url}/healthz", timeout=DEADLINE_S).status_code == 200
    return time.monotonic() - started


def test_slow_sockets_when_there_are_200_are_closed_and_others_are_served_meanwhile(service):
    """A third says nothing, a third half a head, and a third dribbles: a byte at a time, without an end."""
    slow = {number: connect(service) for number in range(SLOW_SOCKETS)}
    with contextlib.ExitStack() as stack:
        for number, connection in slow.items():
            stack.enter_context(connection)
            send(connection, REQUEST if number % 3 else b"")
        waits_s = []
        deadline = time.monotonic() + DEADLINE_S
        while slow:
            assert time.monotonic() < deadline, f"{len(slow)} are still open"
            waits_s.append(measure_health(service))
            for number, connection in list(slow.items()):
                if number % 3 == 2:
                    send(connection, b"X")
                if is_closed(connection):
                    del slow[number]
    assert max(waits_s) < 2  # without them a few milliseconds; a busy machine has its moments


def test_connection_when_it_dribbles_after_a_whole_request_is_closed_too(service):
    with connect(service) as connection:
        connection.sendall(REQUEST + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(REQUEST)
        deadline = time.monotonic() + DEADLINE_S
        while not is_closed(connection, wait_s=0.05):
            assert time.monotonic() < deadline, "it is still open"
            send(connection, b"X")


def test_connection_when_a_request_takes_its_time_stays_open(service, client):
    """Only the head is timed: here a body that takes longer."""
    with connect(service) as connection:
        connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx")
        time.sleep(Impatient.head_timeout_s + 0.2)  # nothing tells that a timer has not fired
        connection.sendall(b"x")
        assert connection.recv(4096).startswith(b"HTTP/1.1 405")


def test_garbage_behind_a_request_is_answered_after_the_request(service):
    with connect(service) as connection:
        connection.sendall(REQUEST + b"\r\n" + b"GARBAGE" * 1000)
        answer = b""
        while block := connection.recv(65536):
            answer += block
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1
