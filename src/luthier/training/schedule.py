"""The learning rate at each step. No torch."""

from __future__ import annotations

import math

from luthier.protocol.spec import Schedule


def get_factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Return the share of the peak learning rate that step ``step`` (from 1) is taken with.

    The warm-up rises in equal parts from the first step, which is not wasted at rate zero, and reaches the peak at
    the first step behind it. From there the rate falls as in transformers' schedules with a minimum rate: the last
    step lies one step above the floor, which only a step after it would reach.
    """
    done = step - 1
    warmup_steps = math.ceil(total_steps * schedule.warmup_ratio)
    if done < warmup_steps:
        return (done + 1) / (warmup_steps + 1)
    progress = (done - warmup_steps) / (total_steps - warmup_steps)
    if schedule.kind == "linear":
        shape = 1 - progress
    else:
        shape = (1 + math.cos(2 * math.pi * schedule.num_cycles * progress)) / 2
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * shape
