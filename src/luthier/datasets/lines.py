"""Reading a JSONL file as lines, in byte ranges, with memory that does not depend on the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

RANGE_BYTES = 2 * 1024 * 1024  # one unit of work: small enough to spread evenly, large enough to hide its cost
MAX_LINE_BYTES = 4 * 1024 * 1024  # a million tokens, more than any context; bounds memory
_TAIL_BYTES = 64 * 1024


class Block(NamedTuple):
    """Complete lines without their line feed; ``start`` is the byte offset of the first."""

    start: int
    lines: list[bytes]


def list_ranges(size_bytes: int) -> list[tuple[int, int]]:
    """Cut a file into byte ranges; each line belongs to the range where its first byte lies."""
    return [(start, min(start + RANGE_BYTES, size_bytes)) for start in range(0, size_bytes, RANGE_BYTES)]


def read_block(file: BinaryIO, start: int, end: int) -> Block:
    """Return the lines that begin in bytes ``start`` to ``end`` (exclusive).

    A line longer than MAX_LINE_BYTES comes back cut, but still longer than that, so that it can be told.
    """
    seek_to = max(start - 1, 0)  # the byte before tells whether a line begins at `start`
    file.seek(seek_to)
    data = file.read(end - seek_to)
    last_newline = data.rfind(b"\n")
    if last_newline < 0 < start:
        return Block(end, [])
    if last_newline + 1 < len(data):
        data += _read_tail(file, MAX_LINE_BYTES + 1 - (len(data) - last_newline - 1))
    lines = data.split(b"\n")
    if start > 0:
        begun_before = lines.pop(0)
        start += len(begun_before)
    if lines and not lines[-1]:
        lines.pop()
    return Block(start, lines)


def _read_tail(file: BinaryIO, limit_bytes: int) -> bytes:
    """Read on to the end of the line, at most ``limit_bytes``; the line feed is left out."""
    parts = []
    while limit_bytes > 0 and (part := file.readline(min(limit_bytes, _TAIL_BYTES))):
        parts.append(part)
        limit_bytes -= len(part)
        if part.endswith(b"\n"):
            break
    return b"".join(parts).removesuffix(b"\n")


def iterate_blocks(file: BinaryIO, size_bytes: int) -> Iterator[Block]:
    """Yield every line of the file, block by block."""
    for start, end in list_ranges(size_bytes):
        yield read_block(file, start, end)
