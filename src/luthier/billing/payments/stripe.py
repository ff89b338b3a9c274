"""Cards through Stripe, by its official library, which comes with ``luthier[stripe]``.

Every call that makes something carries an idempotency key made from our row's id, so that the same order again, also
by the library's own retries, has no second effect. Stripe keeps such keys for a day at least.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import stripe
from stripe import RequestOptions, StripeClient

from luthier.billing.payments import stripe_objects as objects
from luthier.billing.payments.amounts import NANOS_A_CENT
from luthier.billing.payments.processor import (
    CardDetails,
    ChargeOrder,
    DisputeState,
    ForgedWebhook,
    Notification,
    PaymentState,
    ProcessorRefused,
    ProcessorUnreachable,
    RefundOrder,
    RefundState,
    SetupOrder,
    SetupState,
)
from luthier.errors import Conflict
from luthier.log import get_logger

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 25.0
RETRIES: Final = 2  # the library pauses half a second and more before each
SIGNATURE_TOLERANCE_S: Final = 300
CLOCK_SKEW: Final = timedelta(hours=1)  # between Stripe and us, when its list is searched by time
PAGE_SIZE: Final = 100
_HOSTED_PREFIX: Final = "cs_"  # the ids of Checkout Sessions
_EXPAND_SETUP: Final = ["payment_method"]
_EXPAND_HOSTED: Final = ["setup_intent.payment_method"]

_log = get_logger(__name__)


class StripeProcessor:
    """Stripe, or a server that speaks as it does at ``api_base``."""

    def __init__(
        self,
        secret_key: str,
        *,
        webhook_secret: str | None = None,
        api_base: str | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
        retries: int = RETRIES,
    ) -> None:
        stripe.enable_telemetry = False  # it would write an id under the user's home, and tell Stripe of the machine
        self._client = StripeClient(
            secret_key,
            base_addresses={"api": api_base.rstrip("/")} if api_base else {},
            http_client=stripe.RequestsClient(timeout=(CONNECT_TIMEOUT_S, read_timeout_s)),
            max_network_retries=retries,
        )
        self._webhook_secret = webhook_secret

    def require_ready(self) -> None:
        """Return: cards can be charged here."""

    def create_customer(self, organization_id: str) -> str:
        """Make a customer; ``metadata`` tells whose it is."""
        with _translated():
            customer = self._client.v1.customers.create(
                {"name": organization_id, "metadata": {"organization_id": organization_id}},
                _once(f"customer-{organization_id}"),
            )
        return customer.id

    def start_card_setup(self, order: SetupOrder) -> SetupState:
        """Make a SetupIntent, or a Checkout Session that makes one, for charges that come while nobody is there."""
        if order.kind == "hosted":
            return self._start_hosted(order)
        params: Any = {
            "customer": order.customer_ref,
            "usage": "off_session",
            "payment_method_types": ["card"],
            "metadata": _name_setup(order),
            "expand": _EXPAND_SETUP,
        }
        if order.token is not None:
            params |= {"payment_method": order.token, "confirm": True, "return_url": order.return_url}
        try:
            with _translated():
                intent = self._client.v1.setup_intents.create(params, _once(order.setup_id))
        except _Declined as declined:
            found = declined.find("setup_intent")
            if found is not None:
                return objects.view_setup(found)
            return SetupState(None, order.setup_id, "failed", failure=declined.failure)
        return objects.view_setup(intent.to_dict())

    def _start_hosted(self, order: SetupOrder) -> SetupState:
        params: Any = {
            "mode": "setup",
            "customer": order.customer_ref,
            "payment_method_types": ["card"],
            "success_url": order.return_url,
            "cancel_url": order.return_url,
            "metadata": _name_setup(order),
            "setup_intent_data": {"metadata": _name_setup(order)},
        }
        with _translated():
            session = self._client.v1.checkout.sessions.create(params, _once(order.setup_id))
        return objects.view_hosted_setup(session.to_dict())

    def fetch_card_setup(self, ref: str) -> SetupState:
        """Fetch a SetupIntent or a Checkout Session, by what its id begins with."""
        with _translated():
            if ref.startswith(_HOSTED_PREFIX):
                session = self._client.v1.checkout.sessions.retrieve(ref, {"expand": _EXPAND_HOSTED})
                return objects.view_hosted_setup(session.to_dict())
            intent = self._client.v1.setup_intents.retrieve(ref, {"expand": _EXPAND_SETUP})
            return objects.view_setup(intent.to_dict())

    def fetch_card(self, ref: str) -> CardDetails:
        """Fetch a payment method."""
        with _translated():
            return objects.view_card(self._client.v1.payment_methods.retrieve(ref).to_dict())

    def detach_card(self, ref: str) -> None:
        """Detach a payment method, unless it is detached; Stripe refuses to do that twice."""
        with _translated():
            try:
                self._client.v1.payment_methods.detach(ref)
            except stripe.InvalidRequestError:
                if self.fetch_card(ref).customer_ref is not None:
                    raise

    def charge(self, order: ChargeOrder) -> PaymentState:
        """Create and confirm a PaymentIntent."""
        params: Any = {
            "amount": order.amount_nanos // NANOS_A_CENT,
            "currency": order.currency.lower(),
            "customer": order.customer_ref,
            "payment_method": order.card_ref,
            "payment_method_types": ["card"],
            "confirm": True,
            "off_session": not order.is_attended,
            "metadata": {"payment_id": order.payment_id, "organization_id": order.organization_id},
        }
        if order.return_url is not None:
            params["return_url"] = order.return_url
        try:
            with _translated():
                intent = self._client.v1.payment_intents.create(params, _once(order.payment_id))
        except _Declined as declined:
            found = declined.find("payment_intent")
            if found is not None:
                return objects.view_payment(found)
            return PaymentState(None, order.payment_id, order.amount_nanos, "failed", failure=declined.failure)
        return objects.view_payment(intent.to_dict())

    def find_payment(self, order: ChargeOrder, *, since: datetime) -> PaymentState | None:
        """Go through the customer's PaymentIntents since then."""
        earliest = int((since - CLOCK_SKEW).timestamp())
        with _translated():
            page = self._client.v1.payment_intents.list(
                {"customer": order.customer_ref, "created": {"gte": earliest}, "limit": PAGE_SIZE}
            )
            for intent in page.auto_paging_iter():
                state = objects.view_payment(intent.to_dict())
                if state.payment_id == order.payment_id:
                    return state
        return None

    def fetch_payment(self, ref: str) -> PaymentState:
        """Fetch a PaymentIntent."""
        with _translated():
            return objects.view_payment(self._client.v1.payment_intents.retrieve(ref).to_dict())

    def cancel_payment(self, ref: str) -> PaymentState:
        """Cancel a PaymentIntent, unless it came to an end just now."""
        with _translated():
            try:
                self._client.v1.payment_intents.cancel(ref)
            except stripe.InvalidRequestError as error:
                _log.info("payment not canceled", payment=ref, reason=error.code)
        return self.fetch_payment(ref)

    def refund(self, order: RefundOrder) -> RefundState:
        """Create a Refund."""
        with _translated():
            refund = self._client.v1.refunds.create(
                {
                    "payment_intent": order.payment_ref,
                    "amount": order.amount_nanos // NANOS_A_CENT,
                    "metadata": {"refund_id": order.refund_id},
                },
                _once(order.refund_id),
            )
        return objects.view_refund(refund.to_dict())

    def list_refunds(self, payment_ref: str) -> list[RefundState]:
        """Return all Refunds of a PaymentIntent."""
        with _translated():
            page = self._client.v1.refunds.list({"payment_intent": payment_ref, "limit": PAGE_SIZE})
            return [objects.view_refund(refund.to_dict()) for refund in page.auto_paging_iter()]

    def fetch_refund(self, ref: str) -> RefundState:
        """Fetch a Refund."""
        with _translated():
            return objects.view_refund(self._client.v1.refunds.retrieve(ref).to_dict())

    def fetch_dispute(self, ref: str) -> DisputeState:
        """Fetch a Dispute."""
        with _translated():
            return objects.view_dispute(self._client.v1.disputes.retrieve(ref).to_dict())

    def parse_webhook(self, body: bytes, signature: str | None) -> Notification:
        """Check the signature over the body and its time, and name what is to be fetched."""
        if self._webhook_secret is None:
            raise Conflict(
                "webhooks_not_configured",
                "this server does not know the secret that Stripe signs its webhooks with",
                hint="set LUTHIER_STRIPE_WEBHOOK_SECRET to the endpoint's whsec_… secret",
            )
        try:
            stripe.WebhookSignature.verify_header(body, signature, self._webhook_secret, SIGNATURE_TOLERANCE_S)
            return objects.view_event(json.loads(body))
        except stripe.SignatureVerificationError as error:
            raise ForgedWebhook(str(error.user_message)) from None
        # What is not UTF-8 or not an event; the library compares signatures that are not ASCII with a TypeError.
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ForgedWebhook(f"not an event: {type(error).__name__}") from None


class _Declined(ProcessorRefused):
    """A card's bank said no; ``error`` is what Stripe tells of it."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.failure = objects.read_failure(error)
        super().__init__(self.failure.code, self.failure.message)
        self.error = error

    def find(self, name: str) -> Mapping[str, Any] | None:
        """Return the object that was made all the same."""
        found = self.error.get(name)
        return found if isinstance(found, Mapping) else None


@contextmanager
def _translated() -> Iterator[None]:
    """Turn Stripe's errors into ours. What it says of our own key, and of its own trouble, is for the log only."""
    try:
        yield
    except stripe.CardError as error:
        body = json.loads(error.http_body or "{}")
        raise _Declined(body.get("error") or {"code": error.code, "message": error.user_message}) from None
    except stripe.InvalidRequestError as error:
        message = (error.user_message or "no reason was given").rstrip(".")
        raise ProcessorRefused(error.code or "invalid_request", message) from None
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        _log.error("Stripe does not accept this server's secret key", status=error.http_status)
        raise ProcessorUnreachable("Stripe does not accept this server's key") from None
    except (
        stripe.StripeError
    ) as error:  # no connection, busy, a status of 5xx, a key in use by a call that is under way
        raise ProcessorUnreachable(f"{type(error).__name__}, status {error.http_status}") from None


def _once(key: str) -> RequestOptions:
    return {"idempotency_key": f"luthier-{key}"}


def _name_setup(order: SetupOrder) -> dict[str, str]:
    return {"setup_id": order.setup_id, "organization_id": order.organization_id}
