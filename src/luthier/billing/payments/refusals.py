"""The errors that callers of payments see in more than one place."""

from __future__ import annotations

from luthier.billing.payments.processor import ProcessorUnreachable
from luthier.billing.payments.schemas import CardSetupView, PaymentView
from luthier.errors import PaymentRequired, Unavailable
from luthier.log import get_logger

_log = get_logger(__name__)


def refuse_unreachable(error: ProcessorUnreachable) -> Unavailable:
    """Return the error for a caller who has to come back. For what charges no card."""
    _log.warning("processor unreachable", reason=str(error))
    return Unavailable(
        "processor_unreachable",
        "the payment processor cannot be reached now; no card was charged",
        hint="try again in a minute; if it stays, tell the operator",
        retry_after_s=60,
    )


def refuse_declined_setup(setup: CardSetupView) -> PaymentRequired:
    """Return the error for a card that its bank lets nobody save."""
    return PaymentRequired(
        "card_declined",
        f"the card was declined: {setup.failure_message}",
        hint="add another card: luthier billing cards add; or ask the card's bank",
    )


def refuse_declined(payment: PaymentView) -> PaymentRequired:
    """Return the error for a payment that failed, with the bank's reason."""
    return PaymentRequired(
        "card_declined",
        f"the card {payment.card_label} was not charged: {payment.failure_message}",
        hint="pay with another card: luthier billing cards add, then luthier billing pay; or ask the card's bank",
    )
