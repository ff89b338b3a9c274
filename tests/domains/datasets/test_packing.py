"""Packs are full, and the same every time."""

from __future__ import annotations

import random

import pytest

from luthier.datasets.packing import pack


def test_rows_when_they_fit_exactly_leave_no_room():
    assert pack([3, 7, 5, 5], 10) == [[1, 0], [2, 3]]


def test_rows_when_several_packs_have_room_take_the_fullest():
    # After 8, 7 and 6 opened packs with 2, 3 and 4 left, 3 goes where 3 is left.
    assert pack([8, 7, 6, 3], 10) == [[0], [1, 3], [2]]


def test_rows_when_short_fill_packs_almost_whole():
    generator = random.Random(1)
    lengths = [min(8192, 1 + int(generator.expovariate(1 / 300))) for _ in range(20_000)]
    packs = pack(lengths, 8192)
    assert sum(lengths) / (len(packs) * 8192) > 0.99
    assert packs == pack(lengths, 8192)


@pytest.mark.parametrize("length", [0, 11])
def test_row_when_no_pack_can_hold_it_raises(length):
    with pytest.raises(ValueError, match=f"row 1 has {length} tokens"):
        pack([1, length], 10)


def test_rows_when_there_are_none_make_no_pack():
    assert pack([], 10) == []
