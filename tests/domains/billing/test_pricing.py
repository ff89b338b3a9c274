from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.billing import prices, pricing
from luthier.billing.pricing import TokenCounts


def make_quote(**changes):
    settings = {
        "train": TokenCounts(rows=10, tokens=1000, packs=4),
        "validation": TokenCounts(rows=2, tokens=150, packs=1),
        "n_epochs": 3,
        "n_evals": 4,
        "sequences_a_step": 2,
        "packing": True,
        "max_seq_length": 512,
        "rate_nanos": 480,
        "prices": prices.load(),
    }
    return pricing.make_quote(**(settings | changes))


def test_quote_counts_epochs_and_evaluations():
    quote = make_quote()
    assert quote.billed_tokens == 3 * 1000 + 4 * 150
    assert quote.price_nanos == 3600 * 480


def test_quote_names_the_price_list_and_costs_at_least_its_minimum():
    own = replace(prices.load(), version="7", currency="EUR", minimum_nanos=3600 * 480 + 1)
    quote = make_quote(prices=own)
    assert (quote.price_version, quote.currency, quote.price_nanos) == ("7", "EUR", 3600 * 480 + 1)


def test_quote_when_rows_are_not_packed_bills_whole_sequences():
    quote = make_quote(packing=False)
    assert (quote.train_tokens, quote.validation_tokens) == (10 * 512, 2 * 512)
    assert quote.billed_tokens == 3 * 5120 + 4 * 1024


def test_quote_when_no_evaluation_is_asked_for_costs_no_validation_tokens():
    assert make_quote(n_evals=0).validation_tokens == 0
    assert make_quote(n_evals=0).billed_tokens == 3000


@pytest.mark.parametrize(
    ("changes", "steps"), [({}, 3 * 2), ({"packing": False}, 3 * 5), ({"sequences_a_step": 100}, 3)]
)
def test_quote_bills_at_most_one_evaluation_a_step(changes, steps):
    quote = make_quote(n_evals=20, **changes)
    assert (quote.total_steps, quote.evaluations) == (steps, steps)
    assert quote.billed_tokens == 3 * quote.train_tokens + steps * quote.validation_tokens


@given(
    billed=st.integers(min_value=0, max_value=10**13),
    rate=st.sampled_from([480, 540, 3200]),
    total=st.integers(min_value=1, max_value=10**6),
    steps=st.tuples(st.integers(min_value=0, max_value=10**6), st.integers(min_value=0, max_value=10**6)),
)
def test_price_of_completed_steps_grows_with_them_from_nothing_to_the_quote(billed, rate, total, steps):
    def price(completed):
        return pricing.price_completed_steps(
            billed=billed, rate_nanos=rate, completed_steps=completed, total_steps=total
        )

    assert price(0) == 0
    assert price(total) == billed * rate
    fewer, more = sorted(steps)
    assert 0 <= price(fewer) <= price(more) <= billed * rate


def test_price_of_completed_steps_when_their_number_is_not_known_is_nothing():
    assert pricing.price_completed_steps(billed=1000, rate_nanos=480, completed_steps=5, total_steps=None) == 0
