"""Packing: rows of different lengths into as few sequences of one length as a good heuristic finds."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping, Sequence

_WORD_BITS = 512  # a set of up to 2**18 numbers is then one word of words; small integers are quick to shift


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return packs of row indices; each row is in exactly one, no pack is longer than ``capacity`` tokens.

    Best-fit decreasing: long rows first, each into the fullest pack that still has room. Deterministic:
    equal rows keep their order, and among equally full packs the newest is taken. Raises ValueError for a
    length that is not in 1 to ``capacity``.
    """
    packs: list[list[int]] = []
    open_packs = _OpenPacks(capacity)
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[row]
        if not 1 <= length <= capacity:
            raise ValueError(f"row {row} has {length} tokens; a pack holds 1 to {capacity}")
        room = open_packs.find_room(length)
        if room is None:
            room, number = capacity, len(packs)
            packs.append([row])
        else:
            number = open_packs.take(room)
            packs[number].append(row)
        if room > length:
            open_packs.put(number, room - length)
    return packs


def count_packs(rows_by_length: Mapping[int, int], capacity: int) -> int:
    """Return how many packs `pack` makes of so many rows of each length, without the rows.

    The number of packs follows from how much room is left in how many of them, and not from which they are. Raises
    ValueError for a length that is not in 1 to ``capacity``.
    """
    packs_by_room: Counter[int] = Counter()
    rooms: list[int] = []  # those with a pack, ascending

    def add(room: int, packs: int) -> None:
        if room and packs:
            if not packs_by_room[room]:
                insort(rooms, room)
            packs_by_room[room] += packs

    count = 0
    for length in sorted(rows_by_length, reverse=True):
        if not 1 <= length <= capacity:
            raise ValueError(f"a row has {length} tokens; a pack holds 1 to {capacity}")
        rows = rows_by_length[length]
        while rows:
            # The tightest pack stays the tightest while it takes rows of one length: it is filled before the next.
            index = bisect_left(rooms, length)
            is_new = index == len(rooms)
            room = capacity if is_new else rooms.pop(index)
            rows_a_pack = room // length
            available = -(-rows // rows_a_pack) if is_new else packs_by_room.pop(room)
            filled = min(available, rows // rows_a_pack)
            rows -= filled * rows_a_pack
            add(room - rows_a_pack * length, filled)
            available -= filled
            count += filled if is_new else 0
            if available and rows:  # too few rows to fill one more
                add(room - rows * length, 1)
                available -= 1
                count += 1 if is_new else 0
                rows = 0
            if not is_new:
                add(room, available)
    return count


class _OpenPacks:
    """Packs by the tokens that they have left, with the tightest fit found by a few operations on bits."""

    def __init__(self, capacity: int) -> None:
        self._by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
        self._words = [0] * (capacity // _WORD_BITS + 1)  # bit b of word w: there is a pack with w * 512 + b left
        self._filled_words = 0  # bit w: word w is not zero

    def find_room(self, length: int) -> int | None:
        """Return the least room that is at least ``length``."""
        word, bit = divmod(length, _WORD_BITS)
        found = self._words[word] >> bit
        if found:
            return length + _find_lowest_bit(found)
        later = self._filled_words >> (word + 1)
        if not later:
            return None
        word += 1 + _find_lowest_bit(later)
        return word * _WORD_BITS + _find_lowest_bit(self._words[word])

    def take(self, room: int) -> int:
        """Remove and return the newest pack with exactly this room."""
        number = self._by_room[room].pop()
        if not self._by_room[room]:
            word, bit = divmod(room, _WORD_BITS)
            self._words[word] ^= 1 << bit
            if not self._words[word]:
                self._filled_words ^= 1 << word
        return number

    def put(self, number: int, room: int) -> None:
        """Add a pack with this room."""
        self._by_room[room].append(number)
        word, bit = divmod(room, _WORD_BITS)
        self._words[word] |= 1 << bit
        self._filled_words |= 1 << word


def _find_lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
