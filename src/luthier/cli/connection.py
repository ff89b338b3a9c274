"""HTTP to the server: requests that answer JSON, with every way to fail told plainly."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import httpx

from luthier.cli import config
from luthier.cli.config import Config
from luthier.cli.exits import Exit, Failure
from luthier.cli.text import escape
from luthier.cli.version import find_version

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
RETRIES = 3
RETRY_PAUSE_S = 0.5  # doubled each time
RETRY_AFTER_MAX_S = 10.0
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})  # never through a proxy, whatever the environment says
RETRIED_STATUSES = frozenset({429, 502, 503, 504})


class Connection:
    """A server and our key for it. Use as a context manager."""

    def __init__(self, config: Config) -> None:
        self.base_url = config.base_url
        self._authorization = {"Authorization": f"Bearer {config.api_key}"}
        self.http = httpx.Client(
            base_url=config.base_url,
            headers={"User-Agent": f"luthier/{find_version()}"},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=httpx.URL(config.base_url).host not in LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """GET and return the JSON."""
        return self._read_json(self.request("GET", path, params=params, retry=True))

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> Any:
        """POST JSON and return the JSON. Repeated after a lost answer only when it carries an idempotency key."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        timeout = httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S)
        response = self.request(
            "POST", path, json=body, headers=headers, timeout=timeout, retry=idempotency_key is not None
        )
        return self._read_json(response)

    def put(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """PUT JSON and return the JSON; it sets a value, so a lost answer is asked for again."""
        return self._read_json(self.request("PUT", path, json=body, retry=True))

    def delete(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """DELETE and return the JSON, or None when the answer has no body."""
        response = self.request("DELETE", path, params=params)
        return self._read_json(response) if response.content else None

    def request(self, method: str, path: str, *, retry: bool = False, **options: Any) -> httpx.Response:
        """Send one request with our key and return its answer. Raises Failure for an error or when nothing answers."""
        return self.require_success(self.send(method, path, retry=retry, **options))

    def send(self, method: str, path: str, *, retry: bool = False, **options: Any) -> httpx.Response:
        """As ``request``, but an error status is an answer too."""
        options["headers"] = {**self._authorization, **(options.get("headers") or {})}
        for attempt in range(RETRIES + 1):
            last = attempt == RETRIES or not retry
            try:
                response = self.http.request(method, path, **options)
            except httpx.ConnectError as error:
                raise self.unreachable(error) from error
            except httpx.HTTPError as error:
                if last:
                    raise self.unreachable(error) from error
                pause_s = RETRY_PAUSE_S * 2**attempt
            else:
                if last or response.status_code not in RETRIED_STATUSES:
                    return response
                pause_s = _find_retry_after_s(response) or RETRY_PAUSE_S * 2**attempt
            time.sleep(pause_s)
        raise AssertionError(f"no answer after {RETRIES} retries")

    @contextmanager
    def stream(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        """GET with our key, without reading the body. Raises Failure for an error status, httpx's own for a lost one."""
        options["headers"] = {**self._authorization, **(options.get("headers") or {})}
        with self.http.stream("GET", path, **options) as response:
            if response.is_error:
                response.read()
            yield self.require_success(response)

    def require_success(self, response: httpx.Response) -> httpx.Response:
        """Return ``response`` unless it is an error. Raises Failure with the server's own message and hint."""
        if not response.is_error:
            return response
        raise self._explain(response)

    def unreachable(self, error: Exception) -> Failure:
        """Return the Failure for a server that does not answer."""
        reason = escape(str(error) or type(error).__name__)
        return Failure(
            "server_unreachable",
            f"no answer from {self.base_url}: {reason}",
            exit_code=Exit.CONNECTION,
            hint="is it running? start one with: luthier serve; or name another with: luthier login",
        )

    def unexpected(self, response: httpx.Response, what: str) -> Failure:
        """Return the Failure for an answer that no server of ours gives."""
        return Failure(
            "unexpected_answer",
            f"{self.base_url} answered {response.status_code} with {what}",
            exit_code=_find_exit(response.status_code) if response.is_error else Exit.CONNECTION,
            hint="is this the URL of a Luthier server? change it with: luthier login",
        )

    def _explain(self, response: httpx.Response) -> Failure:
        error = _find_error(response)
        if error is None:
            return self.unexpected(response, "an error that is not ours")
        details = error.get("details")
        return Failure(
            str(error.get("code") or "error"),
            str(error.get("message") or f"the server answered {response.status_code}"),
            exit_code=_find_exit(response.status_code),
            hint=error.get("hint"),
            details=[entry for entry in details if isinstance(entry, dict)] if isinstance(details, list) else (),
            request_id=error.get("request_id"),
        )

    def _read_json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise self.unexpected(response, "something that is not JSON") from error


def _find_error(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else None


def _find_exit(status: int) -> Exit:
    if status in {401, 403}:
        return Exit.CONNECTION
    if status == httpx.codes.PAYMENT_REQUIRED:
        return Exit.FUNDS
    if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
        return Exit.SERVER
    return Exit.REFUSED


def _find_retry_after_s(response: httpx.Response) -> float | None:
    try:
        return min(RETRY_AFTER_MAX_S, max(0.0, float(response.headers["Retry-After"])))
    except (KeyError, ValueError):
        return None


def connect(base_url: str | None) -> Connection:
    """Return a connection to the configured server. Raises Failure when none is configured."""
    return Connection(config.resolve(base_url))
