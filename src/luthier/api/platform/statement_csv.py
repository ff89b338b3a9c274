"""A statement as CSV: a line an entry, which a spreadsheet can open without being told to do anything."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Final

from luthier.api.times import format_time
from luthier.billing.money import format_decimal
from luthier.billing.statements import Line

HEADINGS: Final = (
    "number", "time", "kind", "cause", "cause_id", "what", "cash", "credit", "held", "charged", "available_after",
    "held_after", "currency",
)  # fmt: skip
_ACTIVE: Final = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet takes text that begins so for a formula


def write(lines: Iterable[Line], *, currency: str) -> Iterator[str]:
    """Yield the document, a line at a time. Amounts are plain decimal numbers; changes have their sign."""
    yield _format(HEADINGS)
    for line in lines:
        entry = line.entry
        changes = (entry.amounts.get(account, 0) for account in ("cash", "credit", "held", "spent"))
        yield _format(
            (
                str(entry.seq),
                format_time(entry.created_at),
                *map(disarm, (entry.kind, entry.cause.kind, entry.cause.id, entry.note)),
                *map(format_decimal, changes),
                format_decimal(line.available_nanos),
                format_decimal(line.held_nanos),
                disarm(currency),
            )
        )


def disarm(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(_ACTIVE) else text


def _format(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue()
