"""Quotes: the arithmetic from token counts and a rate to nano-dollars. Pure, in whole numbers.

A quote and a final price come from the same functions, so that a job which runs to its end costs what
was quoted.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.billing.prices import PriceList


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
    price_version: str
    currency: str


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
    prices: PriceList,
) -> Quote:
    """Price ``n_epochs`` passes over the training file and ``n_evals`` over the validation file.

    ``sequences_a_step`` is batch size times accumulation steps; a sequence is a pack, or a row without packing. The
    list gives what is beside the rate: its version, the currency and the least that a job costs.
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
        price_nanos=max(total * rate_nanos, prices.minimum_nanos),
        price_version=prices.version,
        currency=prices.currency,
    )


def price_completed_steps(*, billed: int, rate_nanos: int, completed_steps: int, total_steps: int | None) -> int:
    """Return the price of the steps that were completed: the job's tokens in proportion, rounded down to a token.

    None, or a job whose number of steps is not known yet, cost nothing. The least price of a job is for whole jobs only.
    """
    if not total_steps:
        return 0
    completed = min(max(completed_steps, 0), total_steps)
    return billed * completed // total_steps * rate_nanos
