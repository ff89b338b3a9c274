"""A stateful Stripe on loopback, which Stripe's own library talks to.

It serves one ``Account`` over HTTP, keeps idempotency keys as Stripe does, signs events, and fails on command.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from stripe_account import Account, Answer, ApiError

# busy: 429, nothing done. drop: the connection breaks before anything is done. error: 500, nothing done, and so again
# for the key. lost: done, and the connection breaks. hang: done, and the answer never comes. lost_error: done, and 500.
Fault = Literal["busy", "drop", "error", "lost", "hang", "lost_error"]

HANG_S = 20.0

_ROUTES = [
    ("POST", "/v1/customers", "create_customer"),
    ("GET", "/v1/payment_methods/([^/]+)", "get_method"),
    ("POST", "/v1/payment_methods/([^/]+)/detach", "detach_method"),
    ("POST", "/v1/setup_intents", "create_setup"),
    ("GET", "/v1/setup_intents/([^/]+)", "get_setup"),
    ("POST", "/v1/checkout/sessions", "create_session"),
    ("GET", "/v1/checkout/sessions/([^/]+)", "get_session"),
    ("POST", "/v1/payment_intents", "create_intent"),
    ("GET", "/v1/payment_intents", "list_intents"),
    ("GET", "/v1/payment_intents/([^/]+)", "get_intent"),
    ("POST", "/v1/payment_intents/([^/]+)/cancel", "cancel_intent"),
    ("POST", "/v1/refunds", "create_refund"),
    ("GET", "/v1/refunds", "list_refunds"),
    ("GET", "/v1/refunds/([^/]+)", "get_refund"),
    ("GET", "/v1/disputes/([^/]+)", "get_dispute"),
]


@dataclass
class Stored:
    """What an idempotency key brought; ``answer`` is None while that is under way."""

    fingerprint: str
    answer: Answer | None = None


class Simulator(Account):
    """The server of an account."""

    def __init__(self) -> None:
        super().__init__()
        self.secret_key = "sk_test_simulator0123456789"
        self.webhook_secret = "whsec_simulator0123456789"
        self.url = ""
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, idempotency key
        self.before_charge: Callable[[], None] = lambda: None
        self._keys: dict[str, Stored] = {}
        self._faults: list[tuple[Fault, str]] = []
        self._stopping = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Simulator]:
        """Serve on a free port for the length of the block."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(self))
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="stripe")
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            self._stopping.set()
            server.shutdown()
            server.server_close()
            thread.join()

    def fail(self, fault: Fault, path: str = "", *, times: int = 1) -> None:
        """Fail the next so many POSTs, or all requests to ``path``, where it is given."""
        self._faults += [(fault, path)] * times

    def clear_faults(self) -> None:
        self._faults.clear()

    def forget_keys(self) -> None:
        """Do what Stripe does after a day."""
        self._keys.clear()

    def sign(self, event: dict[str, Any], *, secret: str | None = None, at: float | None = None) -> tuple[bytes, str]:
        """Return an event's body and its header Stripe-Signature."""
        body = json.dumps(event).encode()
        stamp = int(time.time() if at is None else at)
        key = (secret or self.webhook_secret).encode()
        return body, f"t={stamp},v1={hmac.new(key, str(stamp).encode() + b'.' + body, hashlib.sha256).hexdigest()}"

    def answer(self, method: str, path: str, params: dict[str, Any], key: str | None) -> Answer | Literal["silence"]:
        """Return status and body, or that the connection is to break."""
        with self._lock:
            self.requests.append((method, path, key))
            fault = self._pop_fault(method, path)
            fingerprint = json.dumps([path, params], sort_keys=True)
            if method == "POST" and key in self._keys:
                return self._repeat(self._keys[key], fingerprint)
            if fault == "busy":
                return ApiError(429, "rate_limit_error", "rate_limit", "Too many requests").answer
            if fault == "drop":
                return "silence"
            if method == "POST" and key is not None:
                self._keys[key] = Stored(fingerprint)
        if method == "POST" and path == "/v1/payment_intents":
            self.before_charge()  # without the lock, so that others meet a key which is under way
        with self._lock:
            return self._finish(fault, method, path, params, key)

    def _finish(
        self, fault: Fault | None, method: str, path: str, params: dict[str, Any], key: str | None
    ) -> Answer | Literal["silence"]:
        broken = ApiError(500, "api_error", None, "An unknown error occurred").answer
        answer = broken if fault == "error" else self._route(method, path, params)
        if fault == "lost_error":
            answer = broken
        answer = copy.deepcopy(answer)  # as things are now: a key brings the same for ever
        if key in self._keys:
            self._keys[key].answer = answer
            if answer[0] == 400:  # what fails before anything is begun is not kept
                del self._keys[key]
        if fault == "hang":
            self._lock.release()
            self._stopping.wait(HANG_S)
            self._lock.acquire()
        return "silence" if fault in {"lost", "hang"} else answer

    def _pop_fault(self, method: str, path: str) -> Fault | None:
        for index, (fault, where) in enumerate(self._faults):
            if (where and path.startswith(where)) or (not where and method == "POST"):
                del self._faults[index]
                return fault
        return None

    def _repeat(self, stored: Stored, fingerprint: str) -> Answer:
        if stored.fingerprint != fingerprint:
            return ApiError(400, "idempotency_error", None, "Keys can only be used with the same parameters").answer
        if stored.answer is None:
            return ApiError(409, "invalid_request_error", "idempotency_key_in_use", "The key is in use").answer
        return stored.answer

    def _route(self, method: str, path: str, params: dict[str, Any]) -> Answer:
        for verb, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, path) if verb == method else None
            if match:
                try:
                    return 200, getattr(self, name)(*match.groups(), params)
                except ApiError as error:
                    return error.answer
        return ApiError(404, "invalid_request_error", "url_invalid", f"Unrecognized request URL: {path}").answer


def _parse(text: str) -> dict[str, Any]:
    """Read a form as Stripe does: ``a[b][0]=c`` is ``{"a": {"b": {"0": "c"}}}``."""
    form: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        *path, last = re.findall(r"[^\[\]]+", name)
        place = form
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return form


def _make_handler(simulator: Simulator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve("GET", urlsplit(self.path).query)

        def do_POST(self) -> None:
            self._serve("POST", self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

        def _serve(self, method: str, text: str) -> None:
            path = urlsplit(self.path).path
            if self.headers["Authorization"] != f"Bearer {simulator.secret_key}":
                self._send(ApiError(401, "invalid_request_error", None, "Invalid API Key provided").answer)
                return
            answer = simulator.answer(method, path, _parse(text), self.headers["Idempotency-Key"])
            if answer != "silence":
                self._send(answer)

        def _send(self, answer: Answer) -> None:
            status, body = answer
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
