"""Stripe's objects, as its API writes them, read into our values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from luthier.billing.payments.amounts import NANOS_A_CENT
from luthier.billing.payments.processor import (
    CardDetails,
    DisputeState,
    Failure,
    Notification,
    PaymentState,
    PaymentStatus,
    RefundState,
    RefundStatus,
    SetupState,
    SetupStatus,
    Subject,
)

Document = Mapping[str, Any]

_PAYMENT_STATUSES: Final[Mapping[str, PaymentStatus]] = {
    "requires_action": "needs_action",
    "requires_payment_method": "failed",  # the card was declined; another card would be another payment
    "succeeded": "succeeded",
    "canceled": "canceled",
}
_SETUP_STATUSES: Final[Mapping[str, SetupStatus]] = {
    "requires_action": "needs_action",
    "succeeded": "succeeded",
    "canceled": "canceled",
}
_REFUND_STATUSES: Final[Mapping[str, RefundStatus]] = {
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "failed",
}
# While one of these stands, the money is gone. An inquiry (warning_…) takes none; a status that is not known here is
# judged by the transfers that the dispute has brought.
_TAKING: Final = frozenset({"needs_response", "under_review", "lost", "appeal_needs_response", "appeal_under_review"})
_NOT_TAKING: Final = frozenset({"won", "warning_needs_response", "warning_under_review", "warning_closed"})

# What an event's object is to us, and its field that names what is to be fetched.
_SUBJECTS: Final[Mapping[str, tuple[Subject, str]]] = {
    "payment_intent": ("payment", "id"),
    "charge": ("payment", "payment_intent"),
    "refund": ("refund", "id"),
    "dispute": ("dispute", "id"),
    "setup_intent": ("setup", "id"),
    "checkout.session": ("setup", "id"),
    "payment_method": ("card", "id"),
}


def view_payment(intent: Document) -> PaymentState:
    """Read a PaymentIntent."""
    return PaymentState(
        ref=str(intent["id"]),
        payment_id=_find_metadata(intent, "payment_id"),
        amount_nanos=int(intent["amount"]) * NANOS_A_CENT,
        status=_PAYMENT_STATUSES.get(str(intent["status"]), "processing"),
        action_url=_find_action_url(intent),
        failure=_find_failure(intent.get("last_payment_error")),
    )


def view_setup(intent: Document) -> SetupState:
    """Read a SetupIntent, its payment method expanded. A method that is not ours, or no card, is not looked into."""
    failure = _find_failure(intent.get("last_setup_error"))
    status = _SETUP_STATUSES.get(str(intent["status"]), "open")
    if status == "open" and failure is not None:
        status = "failed"
    setup_id, found = _find_metadata(intent, "setup_id"), intent.get("payment_method")
    method = found if setup_id is not None and isinstance(found, Mapping) and found.get("type") == "card" else None
    return SetupState(
        ref=str(intent["id"]),
        setup_id=setup_id,
        status=status,
        client_secret=intent.get("client_secret"),
        action_url=_find_action_url(intent),
        card=view_card(method) if status == "succeeded" and method is not None else None,
        failure=failure,
    )


def view_hosted_setup(session: Document) -> SetupState:
    """Read a Checkout Session in mode ``setup``, its SetupIntent and that one's payment method expanded."""
    intent = session.get("setup_intent")
    if session["status"] == "complete" and isinstance(intent, Mapping):
        state = view_setup(intent)
        if state.status == "succeeded":
            return SetupState(ref=str(session["id"]), setup_id=state.setup_id, status="succeeded", card=state.card)
    return SetupState(
        ref=str(session["id"]),
        setup_id=_find_metadata(session, "setup_id"),
        status="canceled" if session["status"] == "expired" else "open",
        action_url=session.get("url"),
    )


def view_card(method: Document) -> CardDetails:
    """Read a payment method of type ``card``."""
    card = method["card"]
    return CardDetails(
        ref=str(method["id"]),
        customer_ref=find_id(method.get("customer")),
        brand=str(card["brand"]),
        last4=str(card["last4"]),
        exp_month=int(card["exp_month"]),
        exp_year=int(card["exp_year"]),
    )


def view_refund(refund: Document) -> RefundState:
    """Read a Refund."""
    reason = refund.get("failure_reason")
    return RefundState(
        ref=str(refund["id"]),
        refund_id=_find_metadata(refund, "refund_id"),
        payment_ref=find_id(refund.get("payment_intent")),
        amount_nanos=int(refund["amount"]) * NANOS_A_CENT,
        status=_REFUND_STATUSES.get(str(refund["status"]), "processing"),
        failure=Failure(str(reason), str(reason).replace("_", " ")) if reason else None,
    )


def view_dispute(dispute: Document) -> DisputeState:
    """Read a Dispute."""
    status = str(dispute["status"])
    moved = sum(int(one.get("amount", 0)) for one in dispute.get("balance_transactions") or [])
    return DisputeState(
        ref=str(dispute["id"]),
        payment_ref=find_id(dispute.get("payment_intent")),
        amount_nanos=int(dispute["amount"]) * NANOS_A_CENT,
        status=status,
        reason=str(dispute.get("reason") or "general"),
        takes_money=status in _TAKING or (status not in _NOT_TAKING and moved < 0),
    )


def view_event(event: Document) -> Notification:
    """Read what an event is about. Raises KeyError or TypeError for what is no event."""
    changed = event["data"]["object"]
    subject, field = _SUBJECTS.get(str(changed.get("object")), ("other", "id"))
    ref = find_id(changed.get(field))
    return Notification(
        id=str(event["id"]), type=str(event["type"]), subject=subject if ref else "other", ref=ref or ""
    )


def find_id(value: object) -> str | None:
    """Return the id of what Stripe gives as an id or as the object itself."""
    if isinstance(value, Mapping):
        return str(value["id"])
    return str(value) if value else None


def _find_metadata(thing: Document, name: str) -> str | None:
    value = (thing.get("metadata") or {}).get(name)
    return str(value) if value else None


def _find_action_url(intent: Document) -> str | None:
    """Return where the card's owner confirms; None where nothing is to be confirmed, or only by a page of ours."""
    action = intent.get("next_action") or {}
    url = (action.get("redirect_to_url") or {}).get("url")
    return str(url) if url else None


def _find_failure(error: object) -> Failure | None:
    return read_failure(error) if isinstance(error, Mapping) and error else None


def read_failure(error: Document) -> Failure:
    """Read an error as Stripe tells it of a card."""
    code = error.get("decline_code") or error.get("code") or "card_declined"
    return Failure(str(code), str(error.get("message") or "no reason was given").rstrip("."))
