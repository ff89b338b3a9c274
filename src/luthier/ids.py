"""Identifiers: a prefix that tells the kind, then random lowercase hex in UUID form."""

from __future__ import annotations

import uuid


def new_id(prefix: str) -> str:
    """Return e.g. ``ft-0b5e…`` for the prefix ``ft``; 122 random bits, so collisions do not happen."""
    return f"{prefix}-{uuid.uuid4()}"
