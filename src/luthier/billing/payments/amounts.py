"""Amounts that a card can be charged: whole cents within the processor's bounds. Pure."""

from __future__ import annotations

from typing import Final

from luthier.billing.money import NANOS_A_UNIT, format_money
from luthier.errors import InvalidRequest

NANOS_A_CENT: Final = NANOS_A_UNIT // 100
MIN_CHARGE_NANOS: Final = 50 * NANOS_A_CENT  # the least that Stripe charges in dollars and euros
MAX_CHARGE_NANOS: Final = 99_999_999 * NANOS_A_CENT  # eight digits of cents are Stripe's most


def require_cents(nanos: object, currency: str, *, param: str = "amount") -> int:
    """Return an amount that is positive and in whole cents. Raises InvalidRequest for any other value."""
    if isinstance(nanos, bool) or not isinstance(nanos, int) or nanos <= 0:
        raise InvalidRequest(
            "invalid_amount",
            f"{param} is not a positive amount of money: {nanos!r} nano-units",
            hint=f"an amount is a whole number of nano-units, {NANOS_A_UNIT} to 1 {currency}",
            param=param,
        )
    if nanos % NANOS_A_CENT:
        raise InvalidRequest(
            "invalid_amount",
            f"{param} is finer than a cent, which no card can be charged: {format_money(nanos, currency)}",
            hint=f"round it to whole cents, as {format_money(round_up_to_cents(nanos), currency)}",
            param=param,
        )
    return nanos


def require_chargeable(nanos: object, currency: str, *, param: str = "amount") -> int:
    """Return an amount that a card can be charged at once. Raises InvalidRequest for any other value."""
    amount = require_cents(nanos, currency, param=param)
    if not MIN_CHARGE_NANOS <= amount <= MAX_CHARGE_NANOS:
        least, most = format_money(MIN_CHARGE_NANOS, currency), format_money(MAX_CHARGE_NANOS, currency)
        raise InvalidRequest(
            "invalid_amount",
            f"{param} is not what a card can be charged at once: {format_money(amount, currency)}",
            hint=f"a payment is from {least} to {most}",
            param=param,
        )
    return amount


def round_up_to_cents(nanos: int) -> int:
    """Return the least amount in whole cents that is not below ``nanos``."""
    return -(-nanos // NANOS_A_CENT) * NANOS_A_CENT


def round_up_to_charge(nanos: int) -> int:
    """Return the least amount that a card can be charged and that is not below ``nanos``; at most the most."""
    return min(max(round_up_to_cents(nanos), MIN_CHARGE_NANOS), MAX_CHARGE_NANOS)
