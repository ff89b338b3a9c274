"""Prices: published rates, and the arithmetic from token counts to nano-dollars. Pure, in whole numbers.

A quote and a final price come from the same functions, so that a job which runs to its end costs what
was quoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TrainingType = Literal["Lora", "Full"]

NANOS_A_DOLLAR = 1_000_000_000
_CENT_DIGITS = 2


@dataclass(frozen=True)
class Band:
    """Models of fewer than ``below_params`` parameters, and what a token costs there in nano-dollars."""

    below_params: int
    lora_nanos: int
    full_nanos: int


# Published 2025, supervised fine-tuning: $0.48 per million tokens is 480 nano-dollars a token. The bands are
# named by whole billions (up to 16B, 17–69B, 70–100B), so each ends where the next begins.
BANDS = (
    Band(below_params=17_000_000_000, lora_nanos=480, full_nanos=540),
    Band(below_params=70_000_000_000, lora_nanos=1_500, full_nanos=1_650),
    Band(below_params=101_000_000_000, lora_nanos=2_900, full_nanos=3_200),
)


class NoPublishedRate(Exception):
    """The model is larger than any band; the message names its size and the largest band."""


@dataclass(frozen=True)
class TokenCounts:
    """What is billed of one file: rows that are trained on, their tokens, and the sequences they are packed into."""

    rows: int
    tokens: int
    packs: int


@dataclass(frozen=True)
class Quote:
    """The price of a job that runs to its end. Token counts are those that are billed.

    ``train_tokens`` are of one epoch, ``validation_tokens`` of one evaluation (0 without evaluations). ``evaluations``
    are never more than ``total_steps``: a job is evaluated at most once a step.
    """

    total_steps: int
    evaluations: int

    train_tokens: int
    validation_tokens: int
    billed_tokens: int
    rate_nanos: int
    price_nanos: int


def get_rate(param_count: int, training_type: TrainingType) -> int:
    """Return the nano-dollars a token. Raises NoPublishedRate for a model beyond the largest band."""
    for band in BANDS:
        if param_count < band.below_params:
            return band.lora_nanos if training_type == "Lora" else band.full_nanos
    largest = BANDS[-1].below_params // 1_000_000_000 - 1
    msg = (
        f"no rate is published for a model of {param_count / 1e9:.0f}B parameters; the largest band ends at {largest}B"
    )
    raise NoPublishedRate(msg)


def billed_tokens(counts: TokenCounts, *, packing: bool, max_seq_length: int) -> int:
    """Return the tokens billed for one pass over a file: every row costs a full sequence unless rows are packed."""
    return counts.tokens if packing else counts.rows * max_seq_length


def make_quote(
    *,
    train: TokenCounts,
    validation: TokenCounts | None,
    n_epochs: int,
    n_evals: int,
    sequences_a_step: int,
    packing: bool,
    max_seq_length: int,
    rate_nanos: int,
) -> Quote:
    """Price ``n_epochs`` passes over the training file and ``n_evals`` over the validation file.

    ``sequences_a_step`` is batch size times accumulation steps; a sequence is a pack, or a row without packing.
    """
    total_steps = -(-(train.packs if packing else train.rows) // sequences_a_step) * n_epochs
    evaluations = min(n_evals, total_steps) if validation is not None else 0
    train_tokens = billed_tokens(train, packing=packing, max_seq_length=max_seq_length)
    validation_tokens = 0
    if validation is not None and evaluations:
        validation_tokens = billed_tokens(validation, packing=packing, max_seq_length=max_seq_length)
    total = n_epochs * train_tokens + evaluations * validation_tokens
    return Quote(
        total_steps=total_steps,
        evaluations=evaluations,
        train_tokens=train_tokens,
        validation_tokens=validation_tokens,
        billed_tokens=total,
        rate_nanos=rate_nanos,
        price_nanos=total * rate_nanos,
    )


def price_completed_steps(*, billed: int, rate_nanos: int, completed_steps: int, total_steps: int | None) -> int:
    """Return the price of the steps that were completed: the job's tokens in proportion, rounded down to a token.

    All steps cost exactly the quote; none, or a job whose number of steps is not known yet, cost nothing.
    """
    if not total_steps:
        return 0
    completed = min(max(completed_steps, 0), total_steps)
    return billed * completed // total_steps * rate_nanos


def format_dollars(nanos: int) -> str:
    """Write an amount in dollars without rounding: at least cents, at most nine digits, no needless zeros."""
    whole, fraction = divmod(abs(nanos), NANOS_A_DOLLAR)
    digits = f"{fraction:09d}".rstrip("0").ljust(_CENT_DIGITS, "0")
    return f"{'-' if nanos < 0 else ''}${whole:,}.{digits}"
