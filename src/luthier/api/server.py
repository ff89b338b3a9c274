"""The HTTP server under the app: uvicorn, with limits on what a connection may do before it has said what it wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_TIMEOUT_S = 15.0  # for the whole of a request's head; its body has limits of its own, by route
SHUTDOWN_GRACE_S = 3  # open event streams end after this; clients come back by Last-Event-ID
CONNECTIONS_MAX = 900  # a process may open 1024 files by default, and the database and the store need some


class Connection(HttpToolsProtocol):
    """One connection. It is closed when a request's head has not come whole in time, be it silent or dribbling."""

    head_timeout_s = HEAD_TIMEOUT_S
    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None before the first request
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take what came; uvicorn's own timer for idle connections ends with the first byte of the next request."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """Stop waiting: there is a request."""
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer with the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request; behind a whole request, they end the connection after its answer.

        At once, this answer would be taken for that of the request, which may have done what it was to do.
        """
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            super().send_400_response(msg)
        else:
            self.cycle.keep_alive = False

    def _wait_for_head(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Server(uvicorn.Server):
    """A server whose ``run`` returns when a signal has ended it, so that its caller can clean up."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while serving; uvicorn would raise them again afterwards, and end the process."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def make_config(
    app: FastAPI,
    *,
    connection: type[Connection] = Connection,
    host: str = "127.0.0.1",
    port: int = 0,
    shutdown_grace_s: int = SHUTDOWN_GRACE_S,
) -> uvicorn.Config:
    """Return how every server of this app is run. ``host`` and ``port`` are for one that is given no socket."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=connection,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_graceful_shutdown=shutdown_grace_s,
    )
