"""Cards through Stripe, by its official library.

A charge or refund is sent once for each call: what became of a lost answer is looked up before the same is sent again
under the same idempotency key, so that a later refusal is never taken for the fate of the first try.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import stripe
from stripe import RequestOptions, StripeClient

from luthier.billing.payments.amounts import NANOS_A_CENT
from luthier.billing.payments.processor import (
    CardDetails,
    Charge,
    ChargeOrder,
    ChargeStatus,
    Declined,
    DisputeState,
    Forged,
    NoAnswer,
    Notification,
    Refund,
    RefundOrder,
    RefundStatus,
    Refused,
    SetupIntent,
    Subject,
    Unable,
)

CURRENCY = "usd"
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 25.0
RETRIES = 2  # of calls that move no money; the library pauses 0.5 s and more between them
SIGNATURE_TOLERANCE_S = 300
CLOCK_SKEW = timedelta(hours=1)  # between Stripe and us, when its list is searched by time

_CHARGE_STATUSES: Mapping[str, ChargeStatus] = {
    "succeeded": "succeeded",
    "processing": "processing",
    "requires_action": "requires_action",
    "requires_payment_method": "failed",  # the card was declined; another would be another payment
    "canceled": "canceled",
}
_REFUND_STATUSES: Mapping[str, RefundStatus] = {
    "succeeded": "succeeded",
    "pending": "processing",
    "requires_action": "processing",
    "failed": "failed",
    "canceled": "failed",
}
# An inquiry (warning_…) takes no money; a dispute does, until it is won.
_TAKING = frozenset({"needs_response", "under_review", "lost"})
_SUBJECTS: Mapping[str, Subject] = {
    "payment_intent": "payment",
    "charge": "charge",
    "refund": "refund",
    "dispute": "dispute",
    "setup_intent": "customer",
    "payment_method": "customer",
    "customer": "customer",
}
# The field of an event's object that names what is to be fetched again.
_SUBJECT_FIELDS = {"charge": "payment_intent", "setup_intent": "customer", "payment_method": "customer"}


class StripeProcessor:
    """Stripe, or a server that speaks as it does at ``api_base``."""

    def __init__(
        self,
        secret_key: str,
        webhook_secret: str,
        *,
        api_base: str | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._client = StripeClient(
            secret_key,
            base_addresses={"api": api_base} if api_base else {},
            http_client=stripe.RequestsClient(timeout=(CONNECT_TIMEOUT_S, read_timeout_s)),
            max_network_retries=RETRIES,
        )
        self._webhook_secret = webhook_secret

    def require_ready(self) -> None:
        """Return: cards can be charged here."""

    def create_customer(self, organization_id: str) -> str:
        """Make a customer; ``metadata`` tells whose it is."""
        with _translated():
            customer = self._client.v1.customers.create(
                {"name": organization_id, "metadata": {"organization_id": organization_id}},
                {"idempotency_key": f"luthier-customer-{organization_id}"},
            )
        return customer.id

    def create_setup_intent(self, customer_id: str) -> SetupIntent:
        """Make a SetupIntent for charges that come while nobody is there."""
        with _translated():
            intent = self._client.v1.setup_intents.create(
                {"customer": customer_id, "usage": "off_session", "payment_method_types": ["card"]}
            )
        assert intent.client_secret is not None, f"a SetupIntent without its secret: {intent.id}"
        return SetupIntent(intent.id, intent.client_secret)

    def add_card(self, customer_id: str, payment_method_id: str) -> str:
        """Attach a payment method and make it the default. Raises Declined."""
        with _translated():
            card = self._client.v1.payment_methods.attach(payment_method_id, {"customer": customer_id})
            self._client.v1.customers.update(
                customer_id, {"invoice_settings": {"default_payment_method": card.id}}
            )
        return card.id

    def list_cards(self, customer_id: str) -> list[CardDetails]:
        """Return the customer's cards; a customer's default is that of its invoices."""
        with _translated():
            customer = self._client.v1.customers.retrieve(customer_id)
            settings = customer.to_dict().get("invoice_settings") or {}
            default = _get_id(settings.get("default_payment_method"))
            page = self._client.v1.customers.payment_methods.list(customer_id, {"type": "card", "limit": 100})
            return [_view_card(method.to_dict(), default) for method in page.auto_paging_iter()]

    def remove_card(self, card_id: str) -> None:
        """Detach a payment method; Stripe refuses that for one which is detached already."""
        try:
            with _translated():
                self._client.v1.payment_methods.detach(card_id)
        except Unable:
            raise
        except Refused:
            return

    def charge(self, order: ChargeOrder) -> Charge:
        """Create and confirm a PaymentIntent."""
        options = _once(f"luthier-{order.payment_id}")
        try:
            with _translated(raise_cards=True):
                intent = self._client.v1.payment_intents.create(
                    {
                        "amount": order.amount_nanos // NANOS_A_CENT,
                        "currency": CURRENCY,
                        "customer": order.customer_id,
                        "payment_method": order.card_id,
                        "payment_method_types": ["card"],
                        "confirm": True,
                        "off_session": not order.is_attended,
                        "metadata": {"payment_id": order.payment_id, "organization_id": order.organization_id},
                    },
                    options,
                )
        except stripe.CardError as error:
            return _view_declined(error, order)
        return _view_charge(intent.to_dict())

    def find_charge(self, order: ChargeOrder, *, since: datetime) -> Charge | None:
        """Go through the customer's PaymentIntents since then."""
        with _translated():
            page = self._client.v1.payment_intents.list(
                {
                    "customer": order.customer_id,
                    "created": {"gte": int((since - CLOCK_SKEW).timestamp())},
                    "limit": 100,
                }
            )
            for intent in page.auto_paging_iter():
                charge = _view_charge(intent.to_dict())
                if charge.payment_id == order.payment_id:
                    return charge
        return None

    def get_charge(self, charge_id: str) -> Charge:
        """Fetch a PaymentIntent."""
        with _translated():
            return _view_charge(self._client.v1.payment_intents.retrieve(charge_id).to_dict())

    def cancel_charge(self, charge_id: str) -> Charge:
        """Cancel a PaymentIntent, unless it came to an end just now."""
        try:
            with _translated():
                self._client.v1.payment_intents.cancel(charge_id)
        except Unable:
            raise
        except Refused:  # no longer in a state to be cancelled
            pass
        return self.get_charge(charge_id)

    def refund(self, order: RefundOrder) -> Refund:
        """Create a Refund."""
        with _translated():
            refund = self._client.v1.refunds.create(
                {
                    "payment_intent": order.charge_id,
                    "amount": order.amount_nanos // NANOS_A_CENT,
                    "metadata": {"refund_id": order.refund_id},
                },
                _once(f"luthier-{order.refund_id}"),
            )
        return _view_refund(refund.to_dict())

    def list_refunds(self, charge_id: str) -> list[Refund]:
        """Return all Refunds of a PaymentIntent."""
        with _translated():
            page = self._client.v1.refunds.list({"payment_intent": charge_id, "limit": 100})
            return [_view_refund(refund.to_dict()) for refund in page.auto_paging_iter()]

    def get_refund(self, refund_id: str) -> Refund:
        """Fetch a Refund."""
        with _translated():
            return _view_refund(self._client.v1.refunds.retrieve(refund_id).to_dict())

    def get_dispute(self, dispute_id: str) -> DisputeState:
        """Fetch a Dispute."""
        with _translated():
            dispute = self._client.v1.disputes.retrieve(dispute_id).to_dict()
        status = str(dispute["status"])
        return DisputeState(
            id=str(dispute["id"]),
            charge_id=_get_id(dispute.get("payment_intent")) or "",
            amount_nanos=int(dispute["amount"]) * NANOS_A_CENT,
            status=status,
            takes_money=status in _TAKING,
        )

    def read_webhook(self, body: bytes, signature: str) -> Notification:
        """Check the signature over the body and its time, and name what is to be fetched again."""
        try:
            event = stripe.Webhook.construct_event(
                body, signature, self._webhook_secret, tolerance=SIGNATURE_TOLERANCE_S
            ).to_dict()
        except stripe.SignatureVerificationError as error:
            raise Forged(str(error.user_message)) from None
        except (ValueError, UnicodeDecodeError, AttributeError) as error:
            raise Forged(f"not an event: {type(error).__name__}") from None
        data = event.get("data") or {}
        subject = data.get("object") or {}
        kind = str(subject.get("object"))
        return Notification(
            id=str(event.get("id")),
            type=str(event.get("type")),
            subject=_SUBJECTS.get(kind, "other"),
            subject_id=_get_id(subject.get(_SUBJECT_FIELDS.get(kind, "id"))) or "",
        )


def _once(key: str) -> RequestOptions:
    return {"idempotency_key": key, "max_network_retries": 0}


@contextmanager
def _translated(*, raise_cards: bool = False) -> Iterator[None]:
    """Turn Stripe's errors into ours; only what is meant for the card's owner is passed on."""
    try:
        yield
    except stripe.CardError as error:
        if raise_cards:
            raise
        raise Declined(_get_decline_code(error), _say(error)) from None
    except (stripe.AuthenticationError, stripe.PermissionError):
        raise Unable("Stripe does not accept this server's key") from None
    except stripe.RateLimitError:
        raise Unable("Stripe is busy") from None
    except stripe.InvalidRequestError as error:
        raise Refused(_say(error)) from None
    except stripe.StripeError as error:  # no connection, a status of 5xx, a key in use by a call that is under way
        raise NoAnswer(type(error).__name__) from error


def _say(error: stripe.StripeError) -> str:
    return (error.user_message or "no reason given").rstrip(".")


def _get_decline_code(error: stripe.CardError) -> str:
    body = error.json_body if isinstance(error.json_body, dict) else {}
    return str((body.get("error") or {}).get("decline_code") or error.code or "card_declined")


def _view_declined(error: stripe.CardError, order: ChargeOrder) -> Charge:
    """Read a charge that the card's bank refused, or that the owner must confirm because nobody was there."""
    body = json.loads(error.http_body or "{}").get("error", {})
    intent = body.get("payment_intent") or {}
    needs_owner = error.code == "authentication_required"
    return Charge(
        processor_id=intent.get("id"),
        payment_id=order.payment_id,
        amount_nanos=order.amount_nanos,
        status="requires_action" if needs_owner else "failed",
        failure_code=_get_decline_code(error),
        failure_message=_say(error),
        client_secret=intent.get("client_secret") if needs_owner else None,
    )


def _view_charge(intent: Mapping[str, Any]) -> Charge:
    status = _CHARGE_STATUSES.get(str(intent["status"]), "processing")
    failure = intent.get("last_payment_error") or {}
    if status == "failed" and failure.get("code") == "authentication_required":
        status = "requires_action"
    return Charge(
        processor_id=str(intent["id"]),
        payment_id=(intent.get("metadata") or {}).get("payment_id"),
        amount_nanos=int(intent["amount"]) * NANOS_A_CENT,
        status=status,
        failure_code=failure.get("decline_code") or failure.get("code"),
        failure_message=str(failure["message"]).rstrip(".") if failure.get("message") else None,
        client_secret=intent.get("client_secret") if status == "requires_action" else None,
    )


def _view_refund(refund: Mapping[str, Any]) -> Refund:
    return Refund(
        processor_id=str(refund["id"]),
        refund_id=(refund.get("metadata") or {}).get("refund_id"),
        charge_id=_get_id(refund.get("payment_intent")) or "",
        amount_nanos=int(refund["amount"]) * NANOS_A_CENT,
        status=_REFUND_STATUSES.get(str(refund["status"]), "processing"),
        failure_message=refund.get("failure_reason"),
    )


def _view_card(method: Mapping[str, Any], default: str | None) -> CardDetails:
    card = method["card"]
    return CardDetails(
        id=str(method["id"]),
        created_at=datetime.fromtimestamp(method["created"], UTC),
        brand=str(card["brand"]),
        last4=str(card["last4"]),
        exp_month=int(card["exp_month"]),
        exp_year=int(card["exp_year"]),
        is_default=method["id"] == default,
    )


def _get_id(value: object) -> str | None:
    """Return the id of what Stripe gives as an id or as the object itself."""
    if isinstance(value, Mapping):
        return cast("str", value["id"])
    return str(value) if value else None
