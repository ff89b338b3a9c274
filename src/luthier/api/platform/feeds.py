"""One poller for each job that is watched, shared by all its event streams.

A stream is only a position in the job's log: it is served from the poller's window when the window
covers the position, and from the database otherwise. So five hundred streams of a job cost one
poller, and a slow client costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError

from luthier import log
from luthier.errors import InvalidRequest, NotFound, Unavailable

POLL_MIN_S = 0.2  # while the job talks
POLL_MAX_S = 0.5  # while it is silent: waiting in the queue, or a long step
POLL_GROWTH = 1.5
WINDOW_ITEMS = 5_000  # about 1 MB a watched job
CHUNK_ITEMS = 200  # about 64 KB at a time
HEARTBEAT_S = 15.0  # proxies end connections that are silent for 30 to 60 s
RETRY_MS = 1000  # how long a browser waits before it comes back
STREAM_MAX_S = 3600.0  # then the client comes back by Last-Event-ID, with a key that is still good
STREAMS_MAX = 2_000  # a process; each is one socket
READERS_MAX = 4  # threads that read for streams, so that a rush of them leaves the other routes theirs

_POSITION = re.compile(r"e(\d{1,15})\.m(\d{1,15})")
_log = log.get_logger(__name__)


@dataclass(frozen=True)
class Position:
    """The last event and the last metric that a stream has sent."""

    event: int = 0
    metric: int = 0

    def __str__(self) -> str:
        return f"e{self.event}.m{self.metric}"

    def is_at_or_after(self, other: Position) -> bool:
        """Tell whether whoever is here has sent everything up to ``other``."""
        return self.event >= other.event and self.metric >= other.metric


def parse_position(text: str) -> Position:
    """Read a ``Last-Event-ID``. Raises InvalidRequest when it is not one of ours."""
    match = _POSITION.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(
            "bad_last_event_id",
            f"Last-Event-ID is not an id of this stream: {text[:80]!r}",
            hint="send the id of the last message received, as e<number>.m<number>, or leave the header out to begin at the first",
            param="Last-Event-ID",
        )
    return Position(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Item:
    """One event or metric, encoded once for all streams."""

    kind: Literal["event", "metric"]
    seq: int
    data: bytes

    def is_after(self, position: Position) -> bool:
        """Tell whether a stream at ``position`` has yet to send this."""
        return self.seq > (position.event if self.kind == "event" else position.metric)

    def move(self, position: Position) -> Position:
        """Return the position of a stream that has sent this too."""
        if self.kind == "event":
            return Position(self.seq, position.metric)
        return Position(position.event, self.seq)


@dataclass(frozen=True)
class Page:
    """What the database held after a position, all of one moment.

    ``has_more`` says that the page's limit cut it off; ``state`` then belongs to a later position.
    """

    items: Sequence[Item]
    has_more: bool
    state: bytes
    is_terminal: bool


ReadPage = Callable[[Position], Page]


class Feed:
    """The log of one job as its poller has seen it: a window of items, and the state at their end."""

    def __init__(self, read: ReadPage, limiter: CapacityLimiter, *, heartbeat_s: float) -> None:
        self.streams = 0
        self._read_page = read
        self._limiter = limiter
        self._heartbeat_s = heartbeat_s
        self._window: list[Item] = []
        self._first = 0  # number of the window's first item, counted from the job's first
        self._base = Position()  # just before the window
        self._end = Position()
        self._state: bytes | None = None  # None until the poller has reached the log's end once
        self._is_over = False
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._poll())

    def close(self) -> None:
        """Stop polling."""
        self._task.cancel()

    async def follow(self, position: Position) -> AsyncGenerator[bytes]:
        """Yield what comes after ``position``, and the job's state whenever it changes.

        Ends after a terminal state, when the job is deleted, or after ``STREAM_MAX_S``.
        """
        number: int | None = None  # the next item of the window to send; None while reading for ourselves
        sent_state: bytes | None = None
        ends_at = time.monotonic() + STREAM_MAX_S
        while time.monotonic() < ends_at:
            changed = self._changed  # taken before looking, so that no change is missed
            number = self._find_number(number, position)
            try:
                items = await self._read_items(position) if number is None else self._get_items(number)
            except NotFound:
                return
            if items:
                number = None if number is None else number + len(items)
                chunk, position = _encode(items, position)
                if chunk:
                    yield chunk
            elif number is not None and self._state not in {None, sent_state}:
                sent_state = self._state
                yield b"event: state\nid: %s\ndata: %s\n\n" % (str(position).encode(), sent_state)
            elif number is not None and self._is_over:
                return
            elif not await _is_set(changed, within_s=self._heartbeat_s):
                yield b": ping\n\n"

    def _find_number(self, number: int | None, position: Position) -> int | None:
        """Return where in the window to go on, or None when the window does not hold what comes next."""
        if number is not None and number >= self._first:
            return number
        return self._first if self._state is not None and position.is_at_or_after(self._base) else None

    def _get_items(self, number: int) -> Sequence[Item]:
        start = number - self._first
        return self._window[start : start + CHUNK_ITEMS]

    async def _read_items(self, position: Position) -> Sequence[Item]:
        return (await self._read(position)).items

    async def _read(self, position: Position) -> Page:
        return await to_thread.run_sync(self._read_page, position, limiter=self._limiter)

    async def _poll(self) -> None:
        pause_s = POLL_MIN_S
        while not self._is_over:
            try:
                page = await self._read(self._end)
            except NotFound:  # deleted while it was watched
                self._is_over = True
                self._wake_streams()
                return
            except SQLAlchemyError as error:
                _log.warning("cannot read a job for its streams; trying again", error=str(error))
                await asyncio.sleep(POLL_MAX_S)
                continue
            has_news = self._take(page)
            if has_news:
                self._wake_streams()
            pause_s = POLL_MIN_S if has_news else min(pause_s * POLL_GROWTH, POLL_MAX_S)
            if not page.has_more:
                await asyncio.sleep(pause_s)

    def _take(self, page: Page) -> bool:
        """Add a page to the window and tell whether it brought anything."""
        has_news = bool(page.items)
        self._window.extend(page.items)
        self._end = _move(self._end, page.items)
        excess = len(self._window) - WINDOW_ITEMS
        if excess > 0:
            self._base = _move(self._base, self._window[:excess])
            self._first += excess
            del self._window[:excess]
        if not page.has_more:
            has_news = has_news or page.state != self._state
            self._state, self._is_over = page.state, page.is_terminal
        return has_news

    def _wake_streams(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Feeds:
    """The feeds of one process, each alive as long as a stream follows it."""

    def __init__(self, *, heartbeat_s: float = HEARTBEAT_S, streams_max: int = STREAMS_MAX) -> None:
        self._feeds: dict[str, Feed] = {}
        self._heartbeat_s = heartbeat_s
        self._streams_max = streams_max
        self._streams = 0
        self._limiter = CapacityLimiter(READERS_MAX)

    def require_room(self) -> None:
        """Raise Unavailable when this process serves as many streams as it may."""
        if self._streams >= self._streams_max:
            raise Unavailable(
                "too_many_streams",
                f"this server already serves {self._streams_max} event streams",
                hint="try again in a few seconds, or ask for the job's events instead",
                retry_after_s=5,
            )

    async def stream(self, job_id: str, read: ReadPage, position: Position) -> AsyncGenerator[bytes]:
        """Follow a job from ``position``; the job's feed is made for its first stream and closed after its last."""
        feed = self._feeds.get(job_id)
        if feed is None:
            feed = self._feeds[job_id] = Feed(read, self._limiter, heartbeat_s=self._heartbeat_s)
        feed.streams += 1
        self._streams += 1
        try:
            yield b"retry: %d\n\n" % RETRY_MS
            async with contextlib.aclosing(feed.follow(position)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._streams -= 1
            feed.streams -= 1
            if feed.streams == 0:
                del self._feeds[job_id]
                feed.close()


async def _is_set(event: asyncio.Event, *, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            return await event.wait()
    except TimeoutError:
        return False


def _move(position: Position, items: Iterable[Item]) -> Position:
    for item in items:
        position = item.move(position)
    return position


def _encode(items: Iterable[Item], position: Position) -> tuple[bytes, Position]:
    """Write the items that a stream at ``position`` has yet to send, and where it is then.

    Each frame's id says how far the stream is with that frame, so a stream may be cut after any of them.
    """
    frames = []
    for item in items:
        if item.is_after(position):
            position = item.move(position)
            frames.append(b"event: %s\nid: %s\ndata: %s\n\n" % (item.kind.encode(), str(position).encode(), item.data))
    return b"".join(frames), position
