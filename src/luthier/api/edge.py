"""The outermost layer: every request gets an id, a log line, a measurement, and an answer even when we fail."""

from __future__ import annotations

import time
from http import HTTPStatus

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier import ids
from luthier.api import errors
from luthier.api.metrics import Metrics
from luthier.log import get_logger

QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics"})  # probes: logged at debug
UNROUTED = "unrouted"  # one label for all unknown paths, which callers could otherwise multiply without end

_log = get_logger("luthier.access")


class Edge:
    """Wraps the app. The query of a URL is never logged: upload URLs carry their token there."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; what the app raises becomes a 500 that tells nothing but the request's id."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = ids.new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", request_id.encode()))
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                _log.exception("request_failed", method=scope["method"], path=scope["path"])
                if status is not None:
                    raise  # too late for an answer: the server closes the connection, so that the client notices
                await errors.render(errors.Unexpected(request_id), request_id)(scope, receive, send_with_id)
            finally:
                self._record(scope, status or HTTPStatus.INTERNAL_SERVER_ERROR, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", UNROUTED)
        self.metrics.observe(method=scope["method"], route=route, status=status, duration_s=duration_s)
        write = _log.debug if route in QUIET_ROUTES else _log.info
        write(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=int(status),
            duration_ms=round(duration_s * 1000, 1),
            project_id=scope["state"].get("project_id"),
            client=scope["client"][0] if scope.get("client") else None,
        )
