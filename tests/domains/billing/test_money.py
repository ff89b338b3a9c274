"""Amounts as text: written exactly, and read exactly or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.billing.money import MAX_NANOS, format_decimal, format_money, parse_amount
from luthier.errors import InvalidRequest


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "$0.00"),
        (480_000, "$0.00048"),
        (1_500_000_000, "$1.50"),
        (1_234_567_890_000_000_000, "$1,234,567,890.00"),
        (1, "$0.000000001"),
        (-1_500_000_000, "-$1.50"),
    ],
)
def test_money_is_written_exactly(nanos, text):
    assert format_money(nanos) == text


def test_money_of_another_currency_names_it():
    assert format_money(-1_500_000_000, "credits") == "-1.50 credits"


@given(nanos=st.integers(1, MAX_NANOS))
def test_amount_that_was_written_is_read_as_it_was(nanos):
    assert parse_amount(format_decimal(nanos)) == nanos
    assert parse_amount(format_money(nanos)) == nanos
    assert parse_amount(f"-{format_decimal(nanos)}", allow_negative=True) == -nanos


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("0", "more than zero"),
        ("-5", "more than zero"),
        ("0.0000000001", "nine decimals"),
        ("9000000000.00000000000000000000000001", "nine decimals"),
        ("9223372036.854775808", "the largest amount"),
        ("20,50", "with a point"),
        ("1,50", "with a point"),
        ("1,0000", "with a point"),
        ("1_0", "a decimal number"),
        ("1e3", "a decimal number"),
        (".5", "a decimal number"),
        ("NaN", "a decimal number"),
        ("Infinity", "a decimal number"),
        ("1e999999999", "a decimal number"),
        ("five", "a decimal number"),
        ("", "a decimal number"),
        ("１２", "a decimal number"),
        ("9" * 65, "a decimal number"),
        (None, "a decimal number"),
        (True, "a decimal number"),
        ({}, "a decimal number"),
    ],
)
def test_what_is_no_amount_is_refused_with_its_text_and_the_way_out(text, hint):
    with pytest.raises(InvalidRequest, match="amount is not an amount of money") as caught:
        parse_amount(text)
    assert hint in caught.value.hint
    assert caught.value.param == "amount"
