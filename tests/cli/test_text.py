from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.cli import text


def test_escape_when_terminal_sequence_then_it_is_spelt_out():
    assert text.escape("a\x1b]0;owned\x07b\x9b31m\r\nc") == r"a\x1b]0;owned\x07b\x9b31m\r\nc"


def test_escape_when_text_direction_is_turned_then_it_is_spelt_out():
    assert text.escape("invoice\u202egpj.exe\u200b") == r"invoice\u202egpj.exe\u200b"


def test_escape_when_lone_surrogate_then_it_can_be_printed():
    assert text.escape("a\udc80").encode() == rb"a\udc80"


def test_escape_when_ordinary_text_of_any_script_then_it_is_kept():
    ordinary = "naïve 数据 שלום 👩\u200d🔬 tab-free"
    assert text.escape(ordinary) == ordinary


@given(st.text(st.characters(codec="utf-8", exclude_categories=())))
def test_escape_when_any_text_then_the_result_is_one_printable_line(value):
    escaped = text.escape(value)
    assert len(escaped.splitlines()) <= 1
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in escaped)


def test_format_nanos_when_any_amount_then_it_is_exact():
    assert text.format_nanos(0) == "$0.00"
    assert text.format_nanos(24_396_960) == "$0.02439696"
    assert text.format_nanos(1) == "$0.000000001"
    assert text.format_nanos(1_234_500_000_000) == "$1,234.50"
    assert text.format_nanos(-500_000_000) == "-$0.50"


@given(st.integers(min_value=-(10**18), max_value=10**18))
def test_format_nanos_when_read_back_then_nothing_was_rounded(nanos):
    shown = text.format_nanos(nanos)
    dollars, _, decimals = shown.removeprefix("-").removeprefix("$").replace(",", "").partition(".")
    value = int(dollars) * 10**9 + int(decimals.ljust(9, "0"))
    assert (-value if shown.startswith("-") else value) == nanos


def test_format_duration_when_seconds_minutes_hours_then_two_units():
    assert [text.format_duration(s) for s in (-3, 0.4, 59.6, 95, 3725)] == [
        "0 s", "0 s", "1 min 00 s", "1 min 35 s", "1 h 02 min",
    ]  # fmt: skip


def test_format_size_when_below_and_above_a_unit_then_decimal_units():
    assert [text.format_size(n) for n in (0, 999, 1000, 1_234_567, 5 * 10**12)] == [
        "0 B", "999 B", "1.0 kB", "1.2 MB", "5.0 TB",
    ]  # fmt: skip


def test_format_time_when_nonsense_then_a_dash():
    assert text.format_time("soon") == "-"
    assert text.format_time(None) == "-"
    assert text.format_time(10**30) == "-"
