"""What a payment processor does for us, as plain values, and the ways in which it does not.

ProcessorError
├── ProcessorUnreachable    nobody knows whether it was done: ask again, with the same order
├── ProcessorRefused        it was not done and never will be; the reason may be shown
└── ForgedWebhook           the processor did not send this, or long ago
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

SetupStatus = Literal["open", "needs_action", "succeeded", "failed", "canceled"]
PaymentStatus = Literal["processing", "needs_action", "succeeded", "failed", "canceled"]
RefundStatus = Literal["processing", "succeeded", "failed"]
SetupKind = Literal["page", "hosted", "token"]
Subject = Literal["payment", "refund", "dispute", "setup", "card", "other"]


class ProcessorError(Exception):
    """Something that a processor did not do."""


class ProcessorUnreachable(ProcessorError):
    """There was no answer, or none that tells whether it was done. The same order again has no second effect."""


class ProcessorRefused(ProcessorError):
    """It was not done and never will be; ``code`` is the processor's, the message may be shown."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ForgedWebhook(ProcessorError):
    """A webhook that the processor did not sign, or signed too long ago."""


@dataclass(frozen=True)
class Failure:
    """Why a card was not charged or saved, in the words of its bank."""

    code: str
    message: str


@dataclass(frozen=True)
class CardDetails:
    """A saved card, without its number. ``customer_ref`` is None once it is detached."""

    ref: str
    customer_ref: str | None
    brand: str
    last4: str
    exp_month: int
    exp_year: int


@dataclass(frozen=True)
class SetupOrder:
    """Everything that the saving of a card is made of. The same ``setup_id`` has one effect.

    ``kind``: on a page of ours (by ``client_secret``), on a page of the processor's, or by the token of a card that
    the processor knows already. ``return_url`` is where the card's owner comes back to.
    """

    setup_id: str
    organization_id: str
    customer_ref: str
    kind: SetupKind
    token: str | None
    return_url: str


@dataclass(frozen=True)
class SetupState:
    """How the saving of a card stands. ``action_url`` is where its owner goes on, ``card`` is there once it succeeded."""

    ref: str | None
    setup_id: str | None
    status: SetupStatus
    client_secret: str | None = field(default=None, repr=False)
    action_url: str | None = None
    card: CardDetails | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class ChargeOrder:
    """Everything that a charge is made of. The same ``payment_id`` has one effect.

    ``is_attended``: the card's owner is there, and can confirm it; they come back to ``return_url``.
    """

    payment_id: str
    organization_id: str
    customer_ref: str
    card_ref: str
    amount_nanos: int
    currency: str
    is_attended: bool
    return_url: str | None


@dataclass(frozen=True)
class PaymentState:
    """How a payment stands. ``payment_id`` is what its order said; None for one that is not ours."""

    ref: str | None
    payment_id: str | None
    amount_nanos: int
    status: PaymentStatus
    action_url: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class RefundOrder:
    """Everything that a refund is made of. The same ``refund_id`` has one effect."""

    refund_id: str
    payment_ref: str
    amount_nanos: int


@dataclass(frozen=True)
class RefundState:
    """How a refund stands. ``refund_id`` is None for one that was made at the processor, not here."""

    ref: str | None
    refund_id: str | None
    payment_ref: str | None
    amount_nanos: int
    status: RefundStatus
    failure: Failure | None = None


@dataclass(frozen=True)
class DisputeState:
    """How a dispute stands. ``takes_money``: the processor has taken the amount, and not given it back."""

    ref: str
    payment_ref: str | None
    amount_nanos: int
    status: str
    reason: str
    takes_money: bool


@dataclass(frozen=True)
class Notification:
    """A webhook: something about this subject may have changed. What it says of the change itself is not used."""

    id: str
    type: str
    subject: Subject
    ref: str


class Processor(Protocol):
    """A payment processor. Most methods call it over the network: never inside a transaction.

    Those may raise ProcessorUnreachable and ProcessorRefused. Amounts are nano-units in whole cents.
    """

    def require_ready(self) -> None:
        """Raise Conflict, with the way out, where there are no card payments."""

    def create_customer(self, organization_id: str) -> str:
        """Make the organization known and return its reference; the same again returns the same."""

    def start_card_setup(self, order: SetupOrder) -> SetupState:
        """Begin to save a card; the same order again returns what the first brought."""

    def fetch_card_setup(self, ref: str) -> SetupState:
        """Return how the saving of a card stands now."""

    def fetch_card(self, ref: str) -> CardDetails:
        """Return a card as it is now."""

    def detach_card(self, ref: str) -> None:
        """Forget a card; one that is gone already is no error."""

    def charge(self, order: ChargeOrder) -> PaymentState:
        """Charge a card; the same order again returns what the first brought. A declined card is a failed payment."""

    def find_payment(self, order: ChargeOrder, *, since: datetime) -> PaymentState | None:
        """Look for the payment that an order made at ``since`` or later, without making one."""

    def fetch_payment(self, ref: str) -> PaymentState:
        """Return how a payment stands now."""

    def cancel_payment(self, ref: str) -> PaymentState:
        """End a payment that waits for its owner, and return how it stands: it may just have succeeded."""

    def refund(self, order: RefundOrder) -> RefundState:
        """Send money back; the same order again returns what the first brought."""

    def list_refunds(self, payment_ref: str) -> list[RefundState]:
        """Return the refunds of a payment, those made elsewhere too."""

    def fetch_refund(self, ref: str) -> RefundState:
        """Return how a refund stands now."""

    def fetch_dispute(self, ref: str) -> DisputeState:
        """Return how a dispute stands now."""

    def parse_webhook(self, body: bytes, signature: str | None) -> Notification:
        """Check a webhook's signature and age, and return what it is about. Raises ForgedWebhook. No network."""
