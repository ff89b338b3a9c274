"""Packing keeps every row once and no pack too long, whatever the lengths."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from luthier.datasets.packing import count_packs, pack


@given(st.data(), st.integers(1, 3000))
def test_packs_cover_each_row_once_and_fit(data, capacity):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    packs = pack(lengths, capacity)
    assert sorted(row for members in packs for row in members) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in members) <= capacity for members in packs)


@given(st.data(), st.integers(1, 3000))
def test_packs_are_best_fits(data, capacity):
    """The same packs as a plain best-fit decreasing that looks at every pack."""
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=40))
    rooms: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fitting = [room for room in rooms if room >= lengths[row]]
        if fitting:
            rooms[rooms.index(min(fitting))] -= lengths[row]
        else:
            rooms.append(capacity - lengths[row])
    packed = sorted(capacity - sum(lengths[row] for row in members) for members in pack(lengths, capacity))
    assert packed == sorted(rooms)


@given(st.data(), st.integers(1, 200))
def test_packs_are_counted_without_the_rows(data, capacity):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=300))
    assert count_packs(Counter(lengths), capacity) == len(pack(lengths, capacity))
