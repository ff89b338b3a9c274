"""Server-sent events, parsed as the HTML standard says (section 9.2.6), from any chunking of the bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class ServerEvent:
    """One event; ``id`` is the last id seen, which ``Last-Event-ID`` sends back."""

    name: str
    data: str
    id: str


class EventTooLarge(ValueError):
    """The stream holds a line or an event over ``MAX_EVENT_BYTES``: it is not one of ours."""


def parse(chunks: Iterable[bytes]) -> Iterator[ServerEvent]:
    """Yield the complete events; one that the end of the stream cuts off is dropped, as the standard says."""
    name, last_id, data, size_bytes = "", "", list[str](), 0
    for line in _split_lines(chunks):
        size_bytes += len(line)
        if size_bytes > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if not line:
            if data:
                yield ServerEvent(name or "message", "\n".join(data), last_id)
            name, data, size_bytes = "", [], 0
            continue
        field, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                name = value
            case "data":
                data.append(value)
            case "id" if "\0" not in value:
                last_id = value
            case _:  # a comment (the field is empty), ``retry``, or something new
                pass


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines without their ends (CR LF, LF or CR), the last one only when it has an end."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        # A CR at the very end may be the first half of CR LF: it waits for the next chunk.
        *lines, rest = _cut(rest)
        yield from lines
        if len(rest) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"a line of more than {MAX_EVENT_BYTES} bytes")
    if rest.endswith(b"\r"):
        yield rest[:-1]


def _cut(block: bytes) -> list[bytes]:
    held = b"\r" if block.endswith(b"\r") else b""
    body = block[: len(block) - len(held)]
    lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    lines[-1] += held
    return lines
