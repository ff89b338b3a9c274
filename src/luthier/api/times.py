"""How moments are written on the wire: UTC with microseconds and ``Z``, which every known client parses."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import PlainSerializer, WithJsonSchema


def format_time(moment: datetime) -> str:
    """Write an aware time, always with its fraction: some clients parse ``.%fZ`` and nothing else."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Time = Annotated[
    datetime,
    PlainSerializer(format_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
