"""A job's event stream, followed across lost connections and server restarts: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from luthier.cli import sse
from luthier.cli.connection import Connection
from luthier.cli.exits import Exit, Failure
from luthier.cli.output import as_dict

TERMINAL = frozenset({"completed", "cancelled", "error", "user_error"})
SILENCE_MAX_S = 45.0  # the server sends a ping every 15 s: after three missed ones the connection is dead
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 10.0
GIVE_UP_S = 900.0  # without any answer; a machine that reboots is back by then

_POSITION = re.compile(r"e(\d+)\.m(\d+)")


@dataclass(frozen=True)
class Update:
    """One message of the stream: ``kind`` is event, metric or state."""

    kind: str
    data: dict[str, Any]


def follow(
    connection: Connection,
    job_id: str,
    *,
    on_lost: Callable[[str], None] = lambda _reason: None,
    sleep: Callable[[float], None] = time.sleep,
    give_up_s: float = GIVE_UP_S,
) -> Iterator[Update]:
    """Yield every event and metric of the job once, and its state at each change, until a terminal state was yielded.

    ``on_lost`` is told why a connection was lost; the next update shows that it is back. Raises
    Failure when the server refuses, or does not answer for ``give_up_s``.
    """
    position = _Position()
    lost_at: float | None = None
    backoff_s = BACKOFF_FIRST_S
    while True:
        try:
            for update in _read(connection, job_id, position):
                lost_at, backoff_s = None, BACKOFF_FIRST_S
                yield update
                if update.kind == "state" and update.data.get("status") in TERMINAL:
                    return
            reason = "the server ended the stream"
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
        except Failure as failure:
            if failure.exit_code is not Exit.SERVER:
                raise
            reason = failure.message
        lost_at = lost_at or time.monotonic()
        if time.monotonic() - lost_at > give_up_s:
            raise connection.unreachable(ConnectionError(reason))
        on_lost(reason)
        sleep(backoff_s * random.uniform(0.75, 1.25))  # so that a thousand watchers do not return in one moment
        backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


def _read(connection: Connection, job_id: str, position: _Position) -> Iterator[Update]:
    headers = {"Accept": "text/event-stream"}
    if position:
        headers["Last-Event-ID"] = str(position)
    timeout = httpx.Timeout(SILENCE_MAX_S, connect=5.0)
    path = f"/api/fine-tunes/{quote(job_id, safe='')}/stream"
    with connection.stream(path, headers=headers, timeout=timeout) as response:
        try:
            for event in sse.parse(response.iter_bytes()):
                if position.take(event):
                    yield Update(event.name, as_dict(json.loads(event.data)))
        except ValueError as error:  # not JSON, or an event too large to be one of ours
            raise connection.unexpected(response, f"a stream that cannot be read: {error}") from error


class _Position:
    """The last event and metric seen. A server that sends one again after a reconnect is not believed."""

    def __init__(self) -> None:
        self._event = 0
        self._metric = 0

    def __bool__(self) -> bool:
        return bool(self._event or self._metric)

    def __str__(self) -> str:
        return f"e{self._event}.m{self._metric}"

    def take(self, event: sse.ServerEvent) -> bool:
        """Move to ``event`` and tell whether it is news."""
        match = _POSITION.fullmatch(event.id)
        if match is None:
            return False
        seen = (self._event, self._metric)
        self._event, self._metric = max(self._event, int(match[1])), max(self._metric, int(match[2]))
        return event.name == "state" or (self._event, self._metric) != seen
