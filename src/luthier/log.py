"""Logs as fields, on stderr, with secrets removed before anything is rendered."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

SECRET_FIELD = re.compile(r"(key|token|secret|password|authorization)$", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"\b(lk-[A-Za-z0-9_-]{8})[A-Za-z0-9_-]{8,}|(token=)[A-Za-z0-9_-]{8,}"
    r"|\b((?:sk|rk)_(?:live|test)_|whsec_)[A-Za-z0-9]{8,}"  # Stripe's
)


def redact(text: str) -> str:
    """Replace what looks like an API key, an upload token or a secret of Stripe's, keeping enough to recognise it."""
    return SECRET_VALUE.sub(lambda m: f"{m[1] or m[2] or m[3]}…", text)


def _redact_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if SECRET_FIELD.search(name) and value is not None:
            event[name] = "…"
        elif isinstance(value, str):
            event[name] = redact(value)
    return event


def configure(*, level: str = "info", as_json: bool = False) -> None:
    """Send every log line to stderr: for people on a terminal, as JSON where a collector reads it."""
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact_fields,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of a module; ``name`` is shown with each line."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger
