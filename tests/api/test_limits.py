from __future__ import annotations

import asyncio
import json
import time

import pytest

from luthier.api import limits
from luthier.errors import InvalidRequest


def test_json_depth_counts_nesting_only():
    flat = b"[" + b",".join([b"[]"] * 100_000) + b"]"
    text = b'"' + b"[" * 1000 + b'\\"' + b"[" * 1000 + b'"'
    limits.require_json(flat)
    limits.require_json(b"[" + text + b"]")
    limits.require_json(b"[" * limits.JSON_MAX_DEPTH + b"]" * limits.JSON_MAX_DEPTH)
    with pytest.raises(InvalidRequest):
        limits.require_json(b"[" * (limits.JSON_MAX_DEPTH + 1) + b"]" * (limits.JSON_MAX_DEPTH + 1))


def test_hostile_json_of_the_largest_size_is_judged_in_seconds():
    size = 8 * 1024 * 1024
    started = time.monotonic()
    for body in (b"[" * size, b"[]" * (size // 2), b'"' * size, b'"\\' * (size // 2), b'{"a":' * (size // 5)):
        with pytest.raises(InvalidRequest):
            limits.require_json(body)
    assert time.monotonic() - started < 20  # quadratic work would take hours


def test_body_when_it_dribbles_is_answered_in_time():
    sent = []

    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message) -> None:
        sent.append(message)

    async def app(scope, receive, send) -> None:
        raise AssertionError("the app never sees it")

    scope = {
        "type": "http",
        "path": "/api/keys",
        "query_string": b"",
        "headers": [],
        "state": {"request_id": "req-1"},
    }
    asyncio.run(limits.BodyLimits(app, max_bytes=1000, timeout_s=0.1)(scope, receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"
