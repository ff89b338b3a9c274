"""Without a processor: there are no cards; an operator grants credit."""

from __future__ import annotations

from datetime import datetime
from typing import NoReturn

from luthier.billing.payments.processor import (
    CardDetails,
    ChargeOrder,
    DisputeState,
    Notification,
    PaymentState,
    RefundOrder,
    RefundState,
    SetupOrder,
    SetupState,
)
from luthier.errors import Conflict


class ManualProcessor:
    """Refuses everything, and says who can help."""

    def require_ready(self) -> None:
        """Raise Conflict."""
        _refuse()

    def create_customer(self, organization_id: str) -> str:
        """Raise Conflict."""
        _refuse(organization_id)

    def start_card_setup(self, order: SetupOrder) -> SetupState:
        """Raise Conflict."""
        _refuse(order)

    def fetch_card_setup(self, ref: str) -> SetupState:
        """Raise Conflict."""
        _refuse(ref)

    def fetch_card(self, ref: str) -> CardDetails:
        """Raise Conflict."""
        _refuse(ref)

    def detach_card(self, ref: str) -> None:
        """Raise Conflict."""
        _refuse(ref)

    def charge(self, order: ChargeOrder) -> PaymentState:
        """Raise Conflict."""
        _refuse(order)

    def find_payment(self, order: ChargeOrder, *, since: datetime) -> PaymentState | None:
        """Raise Conflict."""
        _refuse(order, since)

    def fetch_payment(self, ref: str) -> PaymentState:
        """Raise Conflict."""
        _refuse(ref)

    def cancel_payment(self, ref: str) -> PaymentState:
        """Raise Conflict."""
        _refuse(ref)

    def refund(self, order: RefundOrder) -> RefundState:
        """Raise Conflict."""
        _refuse(order)

    def list_refunds(self, payment_ref: str) -> list[RefundState]:
        """Raise Conflict."""
        _refuse(payment_ref)

    def fetch_refund(self, ref: str) -> RefundState:
        """Raise Conflict."""
        _refuse(ref)

    def fetch_dispute(self, ref: str) -> DisputeState:
        """Raise Conflict."""
        _refuse(ref)

    def parse_webhook(self, body: bytes, signature: str | None) -> Notification:
        """Raise Conflict."""
        _refuse(body, signature)


def _refuse(*_: object) -> NoReturn:
    raise Conflict(
        "payments_are_manual",
        "this server takes no card payments: LUTHIER_PAYMENTS_PROCESSOR is manual",
        hint="ask the operator to grant credit: luthier billing grant ORGANIZATION AMOUNT --reason TEXT",
    )
