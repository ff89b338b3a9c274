"""From token file to tensors: whole rows side by side in one sequence, without any padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.datasets.tokens import TokenFile


@dataclass(frozen=True)
class Batch:
    """Rows that are computed at once. ``segments`` are their lengths: no token sees another segment's.

    ``positions`` are those whose next token is learnt, ``targets`` are these next tokens.
    """

    input_ids: Tensor  # [tokens]
    position_ids: Tensor  # [tokens], from 0 in each segment
    segments: list[int]
    positions: Tensor  # [targets]
    targets: Tensor  # [targets]


class Rows:
    """The rows of a token file as tensors on the device that trains."""

    def __init__(self, tokens: TokenFile, device: torch.device) -> None:
        self._tokens = tokens
        self._device = device
        self.lengths = [end - start for start, end in itertools.pairwise(tokens.offsets)]

    def cut(self, rows: Sequence[int], max_tokens: int) -> Iterator[Batch]:
        """Yield the rows in order, as many at once as fit into ``max_tokens``; a longer row goes alone."""
        pending: list[_Row] = []
        for row in rows:
            newest = _make_row(self._tokens, row)
            if pending and sum(len(one.input_ids) for one in [*pending, newest]) > max_tokens:
                yield self._join(pending)
                pending = []
            pending.append(newest)
        if pending:
            yield self._join(pending)

    def _join(self, parts: Sequence[_Row]) -> Batch:
        segments = [len(part.input_ids) for part in parts]
        starts = [sum(segments[:index]) for index in range(len(segments))]
        position_ids = torch.cat([torch.arange(length) for length in segments])
        positions = torch.cat([part.positions + start for part, start in zip(parts, starts, strict=True)])
        return Batch(
            input_ids=torch.cat([part.input_ids for part in parts]).to(self._device),
            position_ids=position_ids.to(self._device),
            segments=segments,
            positions=positions.to(self._device),
            targets=torch.cat([part.targets for part in parts]).to(self._device),
        )


@dataclass(frozen=True)
class _Row:
    input_ids: Tensor  # [length], without what stands behind the last target's position
    positions: Tensor
    targets: Tensor


def _make_row(tokens: TokenFile, row: int) -> _Row:
    """Return a row as far as it matters: what comes after the last target's position can change no loss."""
    start, end = tokens.offsets[row], tokens.offsets[row + 1]
    ids = torch.frombuffer(tokens.input_ids, dtype=torch.int32, offset=4 * start, count=end - start).long()
    trained = torch.frombuffer(tokens.trained, dtype=torch.uint8, offset=start, count=end - start)
    positions = trained[1:].nonzero()[:, 0]  # the first token has nothing before it that could predict it
    length = int(positions[-1]) + 1 if len(positions) else 1
    return _Row(input_ids=ids[:length], positions=positions, targets=ids[positions + 1])
