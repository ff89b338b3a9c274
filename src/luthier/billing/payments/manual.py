"""Without a processor: no cards; an operator grants credit."""

from __future__ import annotations

from datetime import datetime
from typing import NoReturn

from luthier.billing.payments.processor import (
    CardDetails,
    Charge,
    ChargeOrder,
    DisputeState,
    Notification,
    Refund,
    RefundOrder,
    SetupIntent,
)
from luthier.errors import Conflict


class ManualProcessor:
    """Refuses everything, and says who can help."""

    def require_ready(self) -> None:
        """Raise Conflict."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise Conflict(
            "payments_not_configured",
            "this server takes no card payments: LUTHIER_PAYMENTS is manual",
            hint="the operator grants credit: luthier billing grant ORGANIZATION AMOUNT --reason TEXT",
        )

    def create_customer(self, organization_id: str) -> str:
        """Raise Conflict."""
        del organization_id
        self._refuse()

    def create_setup_intent(self, customer_id: str) -> SetupIntent:
        """Raise Conflict."""
        del customer_id
        self._refuse()

    def add_card(self, customer_id: str, payment_method_id: str) -> str:
        """Raise Conflict."""
        del customer_id, payment_method_id
        self._refuse()

    def list_cards(self, customer_id: str) -> list[CardDetails]:
        """Raise Conflict."""
        del customer_id
        self._refuse()

    def remove_card(self, card_id: str) -> None:
        """Raise Conflict."""
        del card_id
        self._refuse()

    def charge(self, order: ChargeOrder) -> Charge:
        """Raise Conflict."""
        del order
        self._refuse()

    def find_charge(self, order: ChargeOrder, *, since: datetime) -> Charge | None:
        """Raise Conflict."""
        del order, since
        self._refuse()

    def get_charge(self, charge_id: str) -> Charge:
        """Raise Conflict."""
        del charge_id
        self._refuse()

    def cancel_charge(self, charge_id: str) -> Charge:
        """Raise Conflict."""
        del charge_id
        self._refuse()

    def refund(self, order: RefundOrder) -> Refund:
        """Raise Conflict."""
        del order
        self._refuse()

    def list_refunds(self, charge_id: str) -> list[Refund]:
        """Raise Conflict."""
        del charge_id
        self._refuse()

    def get_refund(self, refund_id: str) -> Refund:
        """Raise Conflict."""
        del refund_id
        self._refuse()

    def get_dispute(self, dispute_id: str) -> DisputeState:
        """Raise Conflict."""
        del dispute_id
        self._refuse()

    def read_webhook(self, body: bytes, signature: str) -> Notification:
        """Raise Conflict."""
        del body, signature
        self._refuse()
