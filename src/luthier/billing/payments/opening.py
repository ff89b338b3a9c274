"""The processor that the settings name."""

from __future__ import annotations

import importlib.util
from typing import Final

from luthier.billing.payments.manual import ManualProcessor
from luthier.billing.payments.processor import Processor
from luthier.errors import ServiceError
from luthier.settings import Settings

CURRENCIES: Final = frozenset(
    {"AUD", "CAD", "CHF", "EUR", "GBP", "NZD", "USD"}
)  # of a hundred cents, least charge ≤ 0.50


def build_processor(settings: Settings, *, currency: str = "USD") -> Processor:
    """Return the processor. Raises ServiceError when settings, prices or the installation lack what it needs."""
    if settings.payments_processor == "manual":
        return ManualProcessor()
    if importlib.util.find_spec("stripe") is None:
        raise _refuse("Stripe's library is not installed", "pip install 'luthier[stripe]'")
    if settings.stripe_secret_key is None:
        raise _refuse("there is no secret key", "set LUTHIER_STRIPE_SECRET_KEY to the account's sk_… key")
    if currency not in CURRENCIES:
        raise _refuse(
            f"cards cannot be charged in the price list's currency: {currency}",
            "use manual payments, or a price list in USD",
        )
    from luthier.billing.payments.stripe import StripeProcessor  # noqa: PLC0415  an extra, and half a second

    secret = settings.stripe_webhook_secret
    return StripeProcessor(
        settings.stripe_secret_key.get_secret_value(),
        webhook_secret=None if secret is None else secret.get_secret_value(),
        api_base=settings.stripe_api_base,
    )


def _refuse(problem: str, hint: str) -> ServiceError:
    return ServiceError("payments_misconfigured", f"LUTHIER_PAYMENTS_PROCESSOR is stripe, and {problem}", hint=hint)
