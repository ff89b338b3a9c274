from __future__ import annotations

import asyncio
import re
import threading
import time

import pytest
from sqlalchemy.exc import OperationalError

from luthier.api.platform import feeds
from luthier.api.platform.feeds import Feeds, Item, Page, Position, parse_position
from luthier.api.platform.stream import EventStream
from luthier.errors import InvalidRequest, NotFound, Unavailable

DEADLINE_S = 20
FRAME = re.compile(rb"event: (\w+)\nid: (e\d+\.m\d+)\ndata: (.*)\n\n")


class Log:
    """A job's log in memory, read in pages as the database is."""

    def __init__(self, page_items: int = 10) -> None:
        self.events: list[bytes] = []
        self.metrics: list[bytes] = []
        self.state = b"running"
        self.is_terminal = False
        self.is_deleted = False
        self.failures = 0
        self.reads = 0
        self._page_items = page_items
        self._lock = threading.Lock()

    def add(self, events: int = 0, metrics: int = 0) -> None:
        with self._lock:
            self.events += [b"event %d" % (len(self.events) + 1 + index) for index in range(events)]
            self.metrics += [b"metric %d" % (len(self.metrics) + 1 + index) for index in range(metrics)]

    def end(self) -> None:
        with self._lock:
            self.state, self.is_terminal = b"completed", True

    def read(self, position: Position) -> Page:
        with self._lock:
            self.reads += 1
            if self.is_deleted:
                raise NotFound("job_not_found", "gone")
            if self.failures:
                self.failures -= 1
                raise OperationalError("SELECT", {}, Exception("the database is away"))
            events = [Item("event", n + 1, data) for n, data in enumerate(self.events) if n >= position.event]
            metrics = [Item("metric", n + 1, data) for n, data in enumerate(self.metrics) if n >= position.metric]
            return Page(
                items=[*events[: self._page_items], *metrics[: self._page_items]],
                has_more=max(len(events), len(metrics)) > self._page_items,
                state=self.state,
                is_terminal=self.is_terminal,
            )


def parse(chunks: list[bytes]) -> list[tuple[str, str, bytes]]:
    return [(kind.decode(), at.decode(), data) for kind, at, data in FRAME.findall(b"".join(chunks))]


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(DEADLINE_S):
            return await coroutine

    return asyncio.run(bounded())


async def wait_until(condition) -> None:
    """Return once the condition holds; ``run`` sets the deadline."""
    while not condition():  # noqa: ASYNC110  the condition is whatever the test looks at
        await asyncio.sleep(0.005)


async def wait_for_reads(log: Log, count: int) -> None:
    """Return after ``count`` further looks at the log."""
    seen = log.reads
    await wait_until(lambda: log.reads >= seen + count)


async def collect(hub: Feeds, log: Log, position: Position | None = None) -> list[tuple[str, str, bytes]]:
    return parse([chunk async for chunk in hub.stream("ft-1", log.read, position or Position())])


def finished_log() -> Log:
    log = Log()
    log.add(events=7, metrics=30)
    log.end()
    return log


def test_stream_of_a_finished_job_sends_everything_once_in_order_then_the_state():
    log = finished_log()
    frames = run(collect(Feeds(), log))
    assert [data for kind, _, data in frames if kind == "event"] == log.events
    assert [data for kind, _, data in frames if kind == "metric"] == log.metrics
    assert frames[-1] == ("state", "e7.m30", b"completed")
    assert len(frames) == 7 + 30 + 1


def test_stream_when_resumed_after_any_frame_sends_exactly_the_rest():
    log = finished_log()
    frames = run(collect(Feeds(), log))

    async def resume_everywhere():
        hub = Feeds()
        return [await collect(hub, log, parse_position(at)) for _, at, _ in frames]

    for index, rest in enumerate(run(resume_everywhere())):
        wanted = [data for kind, _, data in frames[index + 1 :] if kind != "state"]
        assert sorted(data for kind, _, data in rest if kind != "state") == sorted(wanted)
        assert rest[-1][2] == b"completed"


def test_stream_while_the_job_runs_sends_what_is_new_and_each_state_once():
    log = Log()

    async def scenario():
        chunks = []

        async def follow():
            async for chunk in hub.stream("ft-1", log.read, Position()):
                chunks.append(chunk)  # noqa: PERF401  read while it grows

        async def wait_for(text: bytes):
            await wait_until(lambda: text in b"".join(chunks))

        hub = Feeds()
        task = asyncio.create_task(follow())
        await wait_for(b"data: running")
        log.add(events=1)
        await wait_for(b"data: event 1")
        log.add(metrics=3)
        await wait_for(b"data: metric 3")
        log.add(events=1)
        log.end()
        await task
        return parse(chunks)

    assert [frame[2] for frame in run(scenario())] == [
        b"running", b"event 1", b"metric 1", b"metric 2", b"metric 3", b"event 2", b"completed",
    ]  # fmt: skip


def test_five_hundred_streams_of_a_job_share_its_poller():
    log = Log()
    log.add(events=5, metrics=50)

    async def scenario():
        hub = Feeds()
        first = hub.stream("ft-1", log.read, Position())
        while b"data: running" not in await anext(first):
            pass  # the feed has read everything once it sends the state
        others = [asyncio.create_task(collect(hub, log)) for _ in range(500)]
        await wait_for_reads(log, 3)
        log.add(events=1)
        log.end()
        frames = await asyncio.gather(*others)
        await first.aclose()
        return frames

    started = time.monotonic()
    results = run(scenario())
    assert {len([1 for kind, _, _ in frames if kind == "event"]) for frames in results} == {6}
    assert {len([1 for kind, _, _ in frames if kind == "metric"]) for frames in results} == {50}
    pages_before = 2 * 6  # of the poller, and of the first stream while the feed was cold
    assert log.reads <= pages_before + 5 + (time.monotonic() - started) / feeds.POLL_MIN_S


def test_slow_stream_that_fell_out_of_the_window_still_gets_everything():
    log = Log(page_items=1000)
    log.add(metrics=10)

    async def scenario():
        hub = Feeds()
        chunks = []
        slow = hub.stream("ft-1", log.read, Position())
        while b"running" not in b"".join(chunks):
            chunks.append(await anext(slow))
        log.add(metrics=3 * feeds.WINDOW_ITEMS)
        log.end()
        assert (
            parse([chunk async for chunk in hub.stream("ft-1", log.read, Position(0, 15_000))])[-1][2] == b"completed"
        )
        chunks += [chunk async for chunk in slow]
        return parse(chunks)

    frames = run(scenario())
    assert [data for kind, _, data in frames if kind == "metric"] == log.metrics


def test_stream_when_the_database_is_away_for_a_moment_goes_on():
    log = Log()

    async def scenario():
        hub = Feeds()
        task = asyncio.create_task(collect(hub, log))
        await wait_for_reads(log, 5)
        log.failures = 2
        log.add(events=1)
        await wait_until(lambda: not log.failures)
        log.end()
        return await task

    assert [frame[2] for frame in run(scenario())] == [b"running", b"event 1", b"completed"]


def test_stream_when_the_job_is_deleted_ends():
    log = Log()
    log.add(events=1)

    async def scenario():
        hub = Feeds()
        task = asyncio.create_task(collect(hub, log))
        await wait_for_reads(log, 5)
        log.is_deleted = True
        return await task

    assert [frame[2] for frame in run(scenario())] == [b"event 1", b"running"]


def test_silent_stream_sends_pings():
    async def scenario():
        stream = Feeds(heartbeat_s=0.05).stream("ft-1", Log().read, Position())
        return [await anext(stream) for _ in range(5)]

    retry, *chunks = run(scenario())
    assert retry.startswith(b"retry: ")
    assert chunks.count(b": ping\n\n") == 3


def test_feed_is_closed_with_its_last_stream():
    log = Log()

    async def scenario():
        hub = Feeds()
        stream = hub.stream("ft-1", log.read, Position())
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        await wait_until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    run(scenario())


def test_stream_when_the_process_serves_as_many_as_it_may_is_refused():
    async def scenario():
        hub = Feeds(streams_max=1)
        stream = hub.stream("ft-1", Log().read, Position())
        await anext(stream)
        with pytest.raises(Unavailable) as refusal:
            hub.require_room()
        await stream.aclose()
        hub.require_room()
        return refusal.value

    assert run(scenario()).retry_after_s


def test_stream_whose_client_takes_nothing_ends_and_leaves_the_feed():
    async def scenario():
        sent = []

        async def send(message):
            sent.append(message["type"])
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        hub = Feeds()
        log = Log()
        log.add(events=3)
        await EventStream(hub.stream("ft-1", log.read, Position()), send_timeout_s=0.05).stream_response(send)
        await wait_until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
        return sent

    assert run(scenario()) == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("text", ["", "7", "e1", "e1.m", "e-1.m2", "m1.e2", "e1.m2x", "e" + "9" * 30 + ".m0"])
def test_position_when_it_is_not_ours_is_refused(text):
    with pytest.raises(InvalidRequest, match="Last-Event-ID"):
        parse_position(text)
