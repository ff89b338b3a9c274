"""The plan of a job: which rows go into which step, and after which steps it is evaluated and saved. No torch.

Rows are packed once. Each epoch sees the packs in an order of its own, drawn from the seed; a row stays in its pack.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.datasets.packing import pack
from luthier.protocol.spec import Hyperparameters


@dataclass(frozen=True)
class Step:
    """One optimizer step: its number from 1, its epoch from 1, and the rows that it learns from."""

    number: int
    epoch: int
    rows: list[int]
    ends_epoch: bool


@dataclass(frozen=True)
class Plan:
    """``packs`` are lists of rows; a step takes ``packs_per_step`` of them, the last one of an epoch what is left.

    ``evaluate_at`` and ``save_at`` are step numbers. The last step is never in ``save_at``: what would be saved
    there is the output itself.
    """

    packs: list[list[int]]
    packs_per_step: int
    n_epochs: int
    evaluate_at: frozenset[int]
    save_at: frozenset[int]

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every row was seen once."""
        return -(-len(self.packs) // self.packs_per_step)

    @property
    def total_steps(self) -> int:
        """Steps of the whole job."""
        return self.steps_per_epoch * self.n_epochs

    def iterate_steps(self, seed: int) -> Iterator[Step]:
        """Yield every step in order."""
        for epoch in range(1, self.n_epochs + 1):
            order = list(range(len(self.packs)))
            random.Random(f"{seed}/{epoch}").shuffle(order)
            for index in range(self.steps_per_epoch):
                packs = order[index * self.packs_per_step : (index + 1) * self.packs_per_step]
                yield Step(
                    number=(epoch - 1) * self.steps_per_epoch + index + 1,
                    epoch=epoch,
                    rows=[row for number in packs for row in self.packs[number]],
                    ends_epoch=index == self.steps_per_epoch - 1,
                )


def make_plan(lengths: Sequence[int], hyperparameters: Hyperparameters) -> Plan:
    """Return the plan for rows of these lengths; there is at least one row."""
    if hyperparameters.packing:
        packs = pack(lengths, hyperparameters.max_seq_length)
    else:
        packs = [[row] for row in range(len(lengths))]
    packs_per_step = hyperparameters.batch_size * hyperparameters.gradient_accumulation_steps
    total_steps = -(-len(packs) // packs_per_step) * hyperparameters.n_epochs
    return Plan(
        packs=packs,
        packs_per_step=packs_per_step,
        n_epochs=hyperparameters.n_epochs,
        evaluate_at=spread(hyperparameters.n_evals, total_steps),
        save_at=spread(hyperparameters.n_checkpoints, total_steps) - {total_steps},
    )


def spread(count: int, total_steps: int) -> frozenset[int]:
    """Return ``count`` steps at even distances, the last step among them; every step when there are fewer."""
    return frozenset(number * total_steps // count for number in range(1, count + 1)) - {0}
