"""The terms on which this server sells: what a newcomer needs, what things cost, who takes payments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from luthier.billing import prices
from luthier.billing.money import format_money, parse_decimal
from luthier.billing.prices import PriceList
from luthier.errors import ServiceError
from luthier.settings import Settings


@dataclass(frozen=True)
class Policy:
    """Made once from the settings. Amounts are in nano-units of the price list's currency.

    Where billing is not ``enabled``, everything is metered and nothing is refused.
    """

    enabled: bool
    minimum_nanos: int  # the available balance that an upload or a job needs to begin with
    processor: Literal["manual", "stripe"]
    grace_s: float  # from the warning of a limit to the end of a job
    opening_grant_nanos: int  # what the first organization gets at the first start, where payments are manual
    prices: PriceList

    @property
    def currency(self) -> str:
        """The currency of all amounts."""
        return self.prices.currency

    def format(self, nanos: int) -> str:
        """Write an amount in the policy's currency."""
        return format_money(nanos, self.currency)

    def list_ways_out(self) -> str:
        """Say how an organization comes to more funds, as the hint of a refusal."""
        if self.processor == "stripe":
            return (
                "add a card: luthier billing cards add; make a payment: luthier billing pay AMOUNT; or have the "
                "operator adjust the credit limit: luthier billing credit-limit ORGANIZATION AMOUNT"
            )
        return (
            "payments are manual here: ask the operator to grant credit (luthier billing grant ORGANIZATION AMOUNT "
            "--reason TEXT), or to raise the credit limit (luthier billing credit-limit); "
            "see the balance: luthier billing balance"
        )


def make_policy(settings: Settings) -> Policy:
    """Return the policy of the settings. Raises ServiceError for an amount or a price file that cannot be used."""
    return Policy(
        enabled=settings.billing_enabled,
        minimum_nanos=_read_amount("billing_minimum", settings.billing_minimum),
        processor=settings.payments_processor,
        grace_s=settings.limit_grace_s,
        opening_grant_nanos=_read_amount("billing_opening_grant", settings.billing_opening_grant),
        prices=prices.load(settings.prices_file),
    )


def make_unlimited(policy: Policy) -> Policy:
    """Return the same terms with nothing refused."""
    return replace(policy, enabled=False)


def _read_amount(setting: str, text: str) -> int:
    nanos = parse_decimal(text)
    if nanos is None or nanos < 0 or nanos != nanos.to_integral_value() or nanos > Decimal(2**63 - 1):
        raise ServiceError(
            "bad_setting",
            f"setting {setting} is not an amount: {text!r}",
            hint=f"give LUTHIER_{setting.upper()} as a decimal number of dollars, as 5 or 0.50",
        )
    return int(nanos)
