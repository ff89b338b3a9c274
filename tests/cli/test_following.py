"""The event stream over a real server that drops connections, repeats itself and restarts."""

from __future__ import annotations

import json
import re

import pytest

from luthier.cli.exits import Exit, Failure
from luthier.cli.following import follow

STEPS = 12


def make_frames():
    """A job's stream: two events, then a metric a step, an event at the end, and the final state."""
    frames = [frame("event", 1, 0, {"type": "job_pending"}), frame("event", 2, 0, {"type": "job_start"})]
    frames += [frame("metric", 2, step, {"step": step}) for step in range(1, STEPS + 1)]
    frames += [frame("event", 3, STEPS, {"type": "job_complete"}), frame("state", 3, STEPS, {"status": "completed"})]
    return frames


def frame(kind, event, metric, data):
    return (event, metric), f"event: {kind}\nid: e{event}.m{metric}\ndata: {json.dumps(data)}\n\n".encode()


EXPECTED = [
    ("event", {"type": "job_pending"}),
    ("event", {"type": "job_start"}),
    *(("metric", {"step": step}) for step in range(1, STEPS + 1)),
    ("event", {"type": "job_complete"}),
    ("state", {"status": "completed"}),
]


class Stream:
    """Sends the frames after ``Last-Event-ID``, ``size_bytes`` a connection, then drops it."""

    def __init__(self, size_bytes, *, chunked=False, repeats=False):
        self.size_bytes = size_bytes
        self.chunked = chunked
        self.repeats = repeats
        self.last_ids = []

    def __call__(self, request):
        last = request.headers.get("Last-Event-ID")
        self.last_ids.append(last)
        position = tuple(map(int, re.fullmatch(r"e(\d+)\.m(\d+)", last).groups())) if last else (0, 0)
        frames = make_frames()
        if not self.repeats:
            frames = [one for one in frames if one[0] != position or b"event: state" in one[1]]
            frames = [one for one in frames if one[0][0] >= position[0] and one[0][1] >= position[1]]
        body = b": ping\n\n" + b"".join(data for _, data in frames)
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        if self.chunked:
            request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        part = body[: self.size_bytes]
        request.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if self.chunked else part)
        if self.chunked and part == body:
            request.wfile.write(b"0\r\n\r\n")


def collect(connection, **options):
    return [(update.kind, update.data) for update in follow(connection, "ft-1", sleep=lambda _: None, **options)]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size_bytes", [75, 100, 133, 400])
def test_follow_when_connection_drops_anywhere_then_nothing_is_lost_or_doubled(serve, connect, size_bytes, chunked):
    stream, losses = Stream(size_bytes, chunked=chunked), []
    with serve(stream) as peer:
        assert collect(connect(peer.url), on_lost=losses.append) == EXPECTED
    assert losses
    assert stream.last_ids[0] is None
    assert stream.last_ids[-1] is not None


def test_follow_when_server_repeats_what_was_seen_then_it_is_not_doubled(serve, connect):
    stream = Stream(10_000, repeats=True)
    cuts = iter([400, 600])

    def answer(request):
        stream.size_bytes = next(cuts, 10_000)
        stream(request)

    with serve(answer) as peer:
        assert collect(connect(peer.url)) == EXPECTED


def test_follow_when_server_restarts_then_goes_on_where_it_was(serve, connect):
    first, second = Stream(400), Stream(10_000)
    restarted = []
    with serve(first) as peer:
        port = peer.server_address[1]
        connection = connect(peer.url)
        updates = follow(connection, "ft-1", sleep=lambda _: restart())
        got = [next(updates)]

    def restart():
        """Called in the pause after a loss: the first time nothing listens yet, then the new server does."""
        if len(restarted) == 1:
            server = serve(second, port)
            server.__enter__()
            restarted.append(server)
        elif not restarted:
            restarted.append(None)

    try:
        got += list(updates)
    finally:
        restarted[1].__exit__(None, None, None)
    assert [(update.kind, update.data) for update in got] == EXPECTED
    assert second.last_ids[0] is not None


def test_follow_when_server_is_overloaded_for_a_while_then_tries_again(serve, connect):
    answers = iter([503, 429, 502])
    stream = Stream(10_000)

    def answer(request):
        status = next(answers, None)
        if status is None:
            stream(request)
        else:
            request.send_json({"error": {"code": "busy", "message": "too many streams"}}, status)

    with serve(answer) as peer:
        assert collect(connect(peer.url)) == EXPECTED


@pytest.mark.parametrize(("status", "code"), [(404, Exit.REFUSED), (403, Exit.CONNECTION), (401, Exit.CONNECTION)])
def test_follow_when_server_refuses_then_it_is_told_at_once(serve, connect, status, code):
    with serve(lambda request: request.send_json({"error": {"code": "no", "message": "not yours"}}, status)) as peer:
        with pytest.raises(Failure, match="not yours") as caught:
            collect(connect(peer.url))
        assert len(peer.requests) == 1
    assert caught.value.exit_code is code


def test_follow_when_server_stays_away_then_gives_up_with_its_address(serve, connect):
    with serve(Stream(400)) as peer:
        url = peer.url
        updates = follow(connect(url), "ft-1", sleep=lambda _: None, give_up_s=0.2)
        next(updates)
    with pytest.raises(Failure, match=url) as caught:
        list(updates)
    assert caught.value.exit_code is Exit.CONNECTION


@pytest.mark.parametrize("data", ["not json", "x" * 5_000_000])
def test_follow_when_stream_is_not_ours_then_says_so(serve, connect, data):
    def answer(request):
        request.send(200, f"event: event\nid: e1.m0\ndata: {data}\n\n".encode(), Content_Type="text/event-stream")

    with serve(answer) as peer, pytest.raises(Failure) as caught:
        collect(connect(peer.url))
    assert caught.value.code == "unexpected_answer"
