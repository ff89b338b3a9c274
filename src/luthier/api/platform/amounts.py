"""Amounts on the wire: for programs whole nano-units, for people a decimal number beside them."""

from __future__ import annotations

from typing import Any

from pydantic import StrictFloat, StrictInt, StrictStr

from luthier.billing.money import format_decimal

# A decimal number, best written as text: "20.50". What it must be like is for billing.money to say.
AmountText = StrictStr | StrictInt | StrictFloat


def spell(**nanos: int) -> dict[str, Any]:
    """Return each ``…_nanos`` together with the same amount as a decimal number, under the name without the ending."""
    decimals = {name.removesuffix("_nanos"): format_decimal(value) for name, value in nanos.items()}
    return {**nanos, **decimals}
