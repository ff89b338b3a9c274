"""Amounts of money as text: reading and writing them without losing a nano. Pure."""

from __future__ import annotations

import re
from decimal import Context, Decimal
from typing import Final

from luthier.errors import InvalidRequest

NANOS_A_UNIT: Final = 1_000_000_000  # nano-dollars in a dollar
MAX_NANOS: Final = 2**63 - 1
_CENT_DIGITS: Final = 2
# Commas group thousands or are not there: a decimal comma must never become a hundred times the amount.
_AMOUNT: Final = re.compile(r"-?\$?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?", re.ASCII)
_MAX_TEXT: Final = 64  # characters; no amount needs more
_EXACT: Final = Context(prec=2 * _MAX_TEXT)  # the usual 28 digits would round a long fraction away


def format_money(nanos: int, currency: str = "USD") -> str:
    """Write an amount without rounding: at least two decimals, at most nine, no needless zeros."""
    text = format_decimal(abs(nanos), group=True)
    sign = "-" if nanos < 0 else ""
    return f"{sign}${text}" if currency == "USD" else f"{sign}{text} {currency}"


def format_decimal(nanos: int, *, group: bool = False) -> str:
    """Write an amount as a plain decimal number of dollars, exactly."""
    whole, fraction = divmod(abs(nanos), NANOS_A_UNIT)
    digits = f"{fraction:09d}".rstrip("0").ljust(_CENT_DIGITS, "0")
    return f"{'-' if nanos < 0 else ''}{whole:{',' if group else ''}}.{digits}"


def parse_amount(text: object, *, param: str = "amount", allow_negative: bool = False) -> int:
    """Return the nano-dollars of a decimal number of dollars, exactly.

    Raises InvalidRequest for what is not a number, for zero, for a negative amount unless that is allowed, for
    fractions of a nano-dollar and for more than 63 bits hold.
    """
    nanos = parse_decimal(text)
    if nanos is None:
        raise _invalid(text, param, "an amount is a decimal number with a point, as 20 or 20.50")
    if nanos != nanos.to_integral_value():
        raise _invalid(text, param, "the smallest amount is a nano-dollar: nine decimals")
    if nanos == 0 or (nanos < 0 and not allow_negative):
        raise _invalid(text, param, "an amount is more than zero")
    if abs(nanos) > MAX_NANOS:
        raise _invalid(text, param, f"the largest amount is {format_money(MAX_NANOS)}")
    return int(nanos)


def parse_decimal(text: object) -> Decimal | None:
    """Return a decimal number of dollars in nano-dollars, which need not be whole; None for what is not a number."""
    if isinstance(text, bool) or not isinstance(text, str | int | float | Decimal):
        return None
    written = str(text).strip()
    if len(written) > _MAX_TEXT or not _AMOUNT.fullmatch(written):
        return None
    return _EXACT.scaleb(Decimal(written.replace(",", "").replace("$", "")), 9)


def _invalid(text: object, param: str, hint: str) -> InvalidRequest:
    shown = str(text)[:_MAX_TEXT]
    return InvalidRequest("invalid_amount", f"{param} is not an amount of money: {shown!r}", hint=hint, param=param)
