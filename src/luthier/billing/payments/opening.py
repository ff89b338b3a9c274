"""The processor that the settings name."""

from __future__ import annotations

import importlib.util

from luthier.billing.payments.manual import ManualProcessor
from luthier.billing.payments.processor import Processor
from luthier.errors import Conflict
from luthier.settings import Settings


def open_processor(settings: Settings) -> Processor:
    """Return the processor. Raises Conflict when the settings or the installation lack what it needs."""
    if settings.payments == "manual":
        return ManualProcessor()
    if importlib.util.find_spec("stripe") is None:
        raise Conflict(
            "payments_misconfigured",
            "LUTHIER_PAYMENTS is stripe, and Stripe's library is not installed",
            hint="pip install 'luthier[payments]'",
        )
    if not settings.stripe_secret_key or not settings.stripe_webhook_secret:
        raise Conflict(
            "payments_misconfigured",
            "LUTHIER_PAYMENTS is stripe, and its keys are not set",
            hint="set LUTHIER_STRIPE_SECRET_KEY (sk_…) and LUTHIER_STRIPE_WEBHOOK_SECRET (whsec_…)",
        )
    from luthier.billing.payments.stripe_processor import StripeProcessor  # noqa: PLC0415  a second to import

    return StripeProcessor(
        settings.stripe_secret_key.get_secret_value(),
        settings.stripe_webhook_secret.get_secret_value(),
        api_base=settings.stripe_api_base,
    )
