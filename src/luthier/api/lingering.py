"""Answers that come before a request's body was read: the sender is given a moment to see them.

Closing a connection with unread bytes in it resets it, and most clients then report a broken pipe in place of the
answer. So the rest of the body is thrown away for a moment, and only then is the connection closed.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_S = 2.0  # enough for a sender to notice; short enough that nobody is made to read a large upload to its end


class Lingering:
    """Wraps the app; requests whose body was read pass untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; an early answer closes the connection after a moment."""
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        unread = True
        lingers = False

        async def watch() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            nonlocal lingers
            if message["type"] == "http.response.start" and unread:
                lingers = True
                message.setdefault("headers", []).append((b"connection", b"close"))
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not (lingers and is_last):
                await send(message)
                return
            await send({**message, "more_body": True})
            await _discard(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.app(scope, watch, answer)


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


async def _discard(receive: Receive) -> None:
    """Read and drop until the body ends, the sender leaves, or its moment is over."""
    try:
        async with asyncio.timeout(LINGER_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
