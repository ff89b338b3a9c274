"""Packing: rows of different lengths into as few sequences of one length as a good heuristic finds."""

from __future__ import annotations

from collections.abc import Sequence

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
