"""What a request's body may be: bounded in size and time, and JSON that means one thing.

Bodies are small but for uploads, so each is read whole and judged here, before any handler or parser sees it.
Uploads are streamed; their routes set their own limits.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.api import errors
from luthier.api.media_types import is_json
from luthier.errors import InvalidRequest, ServiceError, TooLarge

BODY_TIMEOUT_S = 15.0  # for the whole of a small body: a client that dribbles must not hold a connection
JSON_MAX_DEPTH = 64  # the deepest documented body has 6; parsers recurse, and 10,000 levels would end them
INLINE_JSON_BYTES = 64 * 1024  # a larger document is judged in a thread: other requests must not wait for it

_STREAMED = re.compile(r"/v1/uploads/[^/]+|/v1/files/upload")
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # and not a backslash that is followed by u0000
# Possessive, and content with a string that never ends: backtracking would make hostile bodies quadratic.
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACES_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class RequestTimeout(ServiceError):
    """The body did not arrive in time."""

    status = 408


class BodyLimits:
    """Reads each body that is not streamed, or answers for it."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its body in one message unless it is streamed."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            _require_no_nul_in_url(scope)
            forward = receive if _STREAMED.fullmatch(scope["path"]) else await self._read_whole(scope, receive)
        except ServiceError as error:
            response = errors.render(error, scope["state"]["request_id"])
            response.headers["Connection"] = "close"  # the rest of the body must not be read as the next request
            await response(scope, receive, send)
            return
        if forward is not None:
            await self.app(scope, forward, send)

    async def _read_whole(self, scope: Scope, receive: Receive) -> Receive | None:
        """Return what hands out the body, judged; None when the client went away."""
        headers = Headers(scope=scope)
        body = await self._read(headers, receive)
        if body and is_json(headers):
            await _require_json(body)
        return None if body is None else _Replay(body, receive)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """Return the whole body; None when the client went away. Raises TooLarge, RequestTimeout."""
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self.max_bytes:
                        raise self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RequestTimeout(
                "request_timeout",
                f"the request's body did not arrive within {self.timeout_s:g} s",
                hint="check the connection, then send the request again",
            ) from None
        return b"".join(chunks)

    def _too_large(self) -> TooLarge:
        return TooLarge(
            "body_too_large",
            f"the request's body is larger than {self.max_bytes} bytes",
            hint="send data as a file (POST /v1/files); the operator can raise LUTHIER_REQUEST_BODY_MAX_BYTES",
        )


class _Replay:
    """Hands the body out in one message; what comes after it (a disconnect) is the connection's own."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _require_no_nul_in_url(scope: Scope) -> None:
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        raise InvalidRequest(
            "invalid_url", "the URL holds the character NUL (%00)", hint="no id, name or value of this API has one"
        )


async def _require_json(body: bytes) -> None:
    if len(body) <= INLINE_JSON_BYTES:
        require_json(body)
    else:
        await run_in_threadpool(require_json, body)


def require_json(body: bytes) -> None:
    """Raise InvalidRequest unless the body is JSON by the standard, not too deep, with no key twice in an object.

    The parser behind the handlers would let NaN, lone surrogates and repeated keys pass; NUL is JSON, but
    PostgreSQL keeps no text with one.
    """
    if _is_deeper_than(body, JSON_MAX_DEPTH):
        raise _invalid_json(f"it is nested deeper than {JSON_MAX_DEPTH} levels")
    if _ESCAPED_NUL.search(body):
        raise _invalid_json("a string holds the character NUL")
    try:
        msgspec.json.decode(body)
        json.loads(body, object_pairs_hook=_require_unique_keys)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _invalid_json(str(error)) from None


def _is_deeper_than(body: bytes, limit: int) -> bool:
    """Tell whether brackets nest deeper than ``limit``, without recursion: each round removes the innermost pairs."""
    brackets = _JSON_STRING.sub(b"", body).translate(_BRACES_TO_BRACKETS, _NOT_BRACKETS)
    for _ in range(limit):
        shorter = brackets.replace(b"[]", b"")
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    return b"[]" in brackets or brackets.count(b"[") > limit  # still to be removed, or opened and never closed


def _require_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"the key stands twice in one object: {name[:80]!r}")
        value[name] = item
    return value


def _invalid_json(reason: str) -> InvalidRequest:
    return InvalidRequest(
        "invalid_json", f"the request's body is not valid JSON: {reason}", hint="send one JSON object, UTF-8"
    )
