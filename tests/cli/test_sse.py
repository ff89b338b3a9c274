from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.cli import sse
from luthier.cli.sse import ServerEvent

STREAM = (
    b": ping\n\n"
    b"retry: 1000\n\n"
    b"event: state\nid: e0.m0\ndata: {}\n\n"
    b"event: metric\r\nid: e1.m2\r\ndata: a\r\ndata: b\r\n\r\n"
    b"data:  two spaces\rdata\r\r"
    b"id: with\0nul\nunknown: x\ndata: z\xc3\xa9\n\n"
    b"event: lost\ndata: cut off"
)
EVENTS = [
    ServerEvent("state", "{}", "e0.m0"),
    ServerEvent("metric", "a\nb", "e1.m2"),
    ServerEvent("message", " two spaces\n", "e1.m2"),
    ServerEvent("message", "zé", "e1.m2"),
]


@given(st.lists(st.integers(min_value=0, max_value=len(STREAM)), max_size=30))
def test_parse_when_cut_anywhere_then_the_same_events(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(edges)]
    assert list(sse.parse(chunks)) == EVENTS


def test_parse_when_event_type_was_set_once_then_it_does_not_stay():
    assert [event.name for event in sse.parse([b"event: a\ndata: 1\n\ndata: 2\n\n"])] == ["a", "message"]


def test_parse_when_event_without_data_then_nothing_is_yielded():
    assert list(sse.parse([b"event: a\nid: 1\n\n"])) == []


@pytest.mark.parametrize("chunk", [b"x" * 65536, b"data: " + b"x" * 65536 + b"\n"])
def test_parse_when_stream_never_ends_an_event_then_it_is_refused(chunk):
    with pytest.raises(sse.EventTooLarge):
        list(sse.parse(chunk for _ in range(100)))
