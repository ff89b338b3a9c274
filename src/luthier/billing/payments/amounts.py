"""Amounts of money that a card can be charged: read exactly, refused with the way out. Pure."""

from __future__ import annotations

import re
from decimal import Decimal

from luthier.billing.pricing import NANOS_A_DOLLAR, format_dollars
from luthier.errors import InvalidRequest

NANOS_A_CENT = NANOS_A_DOLLAR // 100
MIN_CHARGE_NANOS = 50 * NANOS_A_CENT  # Stripe's least charge in dollars: docs.stripe.com/currencies
MAX_CHARGE_NANOS = 99_999_999 * NANOS_A_CENT  # Stripe's greatest: eight digits of cents

_DOLLARS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)


def parse_dollars(text: str, *, param: str = "amount") -> int:
    """Return the nano-dollars of a decimal number of dollars such as ``25`` or ``9.50``, exactly.

    Raises InvalidRequest for anything else: a sign, an exponent, NaN, finer than a nano-dollar.
    """
    if not _DOLLARS.fullmatch(text):
        raise InvalidRequest(
            "invalid_amount",
            f"not an amount in dollars: {text[:40]!r}",
            hint='write a positive decimal number of dollars as a string, for example "25" or "9.50"',
            param=param,
        )
    return int(Decimal(text) * NANOS_A_DOLLAR)


def require_cents(nanos: int, *, param: str = "amount") -> None:
    """Raise InvalidRequest unless this is a positive amount in whole cents that fits into a ledger."""
    if not 0 < nanos < 2**63:
        raise InvalidRequest(
            "invalid_amount",
            f"not an amount to move: {nanos} nano-dollars",
            hint="an amount is more than 0 and less than 2^63 nano-dollars ($1 is 1,000,000,000)",
            param=param,
        )
    if nanos % NANOS_A_CENT:
        raise InvalidRequest(
            "invalid_amount",
            f"cards know nothing finer than a cent: {format_dollars(nanos)}",
            hint="round the amount to whole cents",
            param=param,
        )


def require_chargeable(nanos: int, *, param: str = "amount") -> None:
    """Raise InvalidRequest unless a card can be charged this amount."""
    require_cents(nanos, param=param)
    if not MIN_CHARGE_NANOS <= nanos <= MAX_CHARGE_NANOS:
        raise InvalidRequest(
            "invalid_amount",
            f"a card cannot be charged this amount at once: {format_dollars(nanos)}",
            hint=f"a payment is from {format_dollars(MIN_CHARGE_NANOS)} to {format_dollars(MAX_CHARGE_NANOS)}",
            param=param,
        )


def round_up_to_charge(nanos: int) -> int:
    """Return the least amount that a card can be charged and that is not below ``nanos``; at most the greatest."""
    cents = -(-nanos // NANOS_A_CENT) * NANOS_A_CENT
    return min(max(cents, MIN_CHARGE_NANOS), MAX_CHARGE_NANOS)
