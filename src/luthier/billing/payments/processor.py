"""What a payment processor does for us, and the ways in which it does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

ChargeStatus = Literal["processing", "requires_action", "succeeded", "failed", "canceled"]
RefundStatus = Literal["processing", "succeeded", "failed"]
Subject = Literal["payment", "charge", "refund", "dispute", "customer", "other"]


class NoAnswer(Exception):
    """The processor did not answer, or not in a way that tells whether it has done what was asked."""


class Refused(Exception):
    """The processor did not do it and never will; the message is its reason and may be shown."""


class Unable(Refused):
    """The processor did not do it now, and may later: it is busy, or does not accept our own key."""


class Declined(Exception):
    """The card's bank says no. ``code`` is the processor's; the message may be shown."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Forged(Exception):
    """A webhook that the processor did not sign, or signed too long ago."""


@dataclass(frozen=True)
class CardDetails:
    """A saved card, without its number."""

    id: str
    created_at: datetime
    brand: str
    last4: str
    exp_month: int
    exp_year: int
    is_default: bool


@dataclass(frozen=True)
class SetupIntent:
    """A card being saved in a browser: whoever has the secret may finish it."""

    id: str
    client_secret: str = field(repr=False)


@dataclass(frozen=True)
class ChargeOrder:
    """Everything that a charge is made of; the same ``payment_id`` has one effect. ``is_attended``: the owner is there."""

    payment_id: str
    organization_id: str
    customer_id: str
    card_id: str
    amount_nanos: int
    is_attended: bool


@dataclass(frozen=True)
class Charge:
    """How a charge stands. ``payment_id`` is what its order said; None for one that is not ours."""

    processor_id: str | None
    payment_id: str | None
    amount_nanos: int
    status: ChargeStatus
    failure_code: str | None = None
    failure_message: str | None = None
    client_secret: str | None = field(default=None, repr=False)  # to confirm it in a browser


@dataclass(frozen=True)
class RefundOrder:
    """Everything that a refund is made of; the same ``refund_id`` has one effect."""

    refund_id: str
    charge_id: str
    amount_nanos: int


@dataclass(frozen=True)
class Refund:
    """How a refund stands. ``refund_id`` is None for one that was made at the processor, not here."""

    processor_id: str | None
    refund_id: str | None
    charge_id: str
    amount_nanos: int
    status: RefundStatus
    failure_message: str | None = None


@dataclass(frozen=True)
class DisputeState:
    """How a dispute stands. ``takes_money``: the processor has taken the amount from us, and not given it back."""

    id: str
    charge_id: str
    amount_nanos: int
    status: str
    takes_money: bool


@dataclass(frozen=True)
class Notification:
    """A webhook: something about this subject may have changed. What it says of the change itself is not used."""

    id: str
    type: str
    subject: Subject
    subject_id: str


class Processor(Protocol):
    """A payment processor. Every method but the last two calls it over the network: never inside a transaction.

    Each may raise NoAnswer or Refused. Amounts are nano-dollars, in whole cents.
    """

    def require_ready(self) -> None:
        """Raise Conflict, with the way out, where no card can be charged."""

    def create_customer(self, organization_id: str) -> str:
        """Make the organization known and return its id there; the same again returns the same."""

    def create_setup_intent(self, customer_id: str) -> SetupIntent:
        """Begin saving a card in a browser."""

    def add_card(self, customer_id: str, payment_method_id: str) -> str:
        """Save a card, make it the default and return its id. Raises Declined."""

    def list_cards(self, customer_id: str) -> list[CardDetails]:
        """Return the saved cards."""

    def remove_card(self, card_id: str) -> None:
        """Forget a card; one that is gone already is no error."""

    def charge(self, order: ChargeOrder) -> Charge:
        """Charge a card; the same order again returns what the first brought. A declined card is a failed charge."""

    def find_charge(self, order: ChargeOrder, *, since: datetime) -> Charge | None:
        """Look for the charge that an order made at ``since`` or later, without making one."""

    def get_charge(self, charge_id: str) -> Charge:
        """Return how a charge stands now."""

    def cancel_charge(self, charge_id: str) -> Charge:
        """End a charge that waits for its owner, and return how it stands: it may just have succeeded."""

    def refund(self, order: RefundOrder) -> Refund:
        """Send money back; the same order again returns what the first brought."""

    def list_refunds(self, charge_id: str) -> list[Refund]:
        """Return the refunds of a charge."""

    def get_refund(self, refund_id: str) -> Refund:
        """Return how a refund stands now."""

    def get_dispute(self, dispute_id: str) -> DisputeState:
        """Return how a dispute stands now."""

    def read_webhook(self, body: bytes, signature: str) -> Notification:
        """Check a webhook's signature and age, and return what it is about. Raises Forged."""
