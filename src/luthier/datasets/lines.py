"""Reading a JSONL file line by line, in byte ranges, with memory that does not depend on the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

RANGE_BYTES = 2 * 1024 * 1024  # one unit of work: small enough to spread evenly, large enough to hide its cost
MAX_LINE_BYTES = 4 * 1024 * 1024  # a million tokens, more than any context; bounds memory
_BUFFER_BYTES = 64 * 1024


def open_file(path: Path) -> BinaryIO:
    """Open a file for ``read_lines``."""
    return path.open("rb", buffering=_BUFFER_BYTES)


def list_ranges(size_bytes: int) -> list[tuple[int, int]]:
    """Cut a file into byte ranges; each line belongs to the range where its first byte lies."""
    return [(start, min(start + RANGE_BYTES, size_bytes)) for start in range(0, size_bytes, RANGE_BYTES)]


def read_lines(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield byte offset and content of each line that begins in bytes ``start`` to ``end`` (exclusive).

    Line feeds are left out. A line longer than MAX_LINE_BYTES comes cut, but still longer than that, so that it
    can be told.
    """
    position = max(start - 1, 0)  # the byte before tells whether a line begins at `start`
    file.seek(position)
    if start > 0:
        position += _skip_line(file, end - position)
    while position < end:
        line = file.readline(MAX_LINE_BYTES + 2)  # room for the line feed and for one byte too many
        if not line:
            return
        yield position, line.removesuffix(b"\n")
        position += len(line)
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            position += _skip_line(file, end - position)


def _skip_line(file: BinaryIO, limit_bytes: int) -> int:
    """Go past the next line feed, or at least ``limit_bytes`` on; return how many bytes that was."""
    skipped = 0
    while skipped < limit_bytes:
        part = file.readline(_BUFFER_BYTES)
        skipped += len(part)
        if not part or part.endswith(b"\n"):
            break
    return skipped
