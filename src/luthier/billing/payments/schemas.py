"""What the payments' services return: cards, payments, refunds, disputes and automatic recharging, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from luthier.billing.payments.processor import SetupKind

CardSetupStatus = Literal["created", "open", "needs_action", "succeeded", "failed", "canceled"]
PaymentStatus = Literal["created", "needs_action", "succeeded", "failed", "canceled"]
RefundStatus = Literal["created", "succeeded", "failed"]


@dataclass(frozen=True)
class CardView:
    """A saved card, without its number."""

    id: str
    organization_id: str
    created_at: datetime
    brand: str
    last4: str
    exp_month: int
    exp_year: int
    is_default: bool
    removed_at: datetime | None

    @property
    def label(self) -> str:
        """The card as people know it: ``visa ending in 4242``."""
        return f"{self.brand} ending in {self.last4}"


@dataclass(frozen=True)
class CardSetupView:
    """A card on its way to being saved. Where it is not done yet, its owner goes on at ``action_url``.

    ``client_secret`` is for a page that saves the card itself; it is told once, by the call that began it.
    """

    id: str
    organization_id: str
    created_at: datetime
    kind: SetupKind
    status: CardSetupStatus
    action_url: str | None
    failure_code: str | None
    failure_message: str | None
    card: CardView | None
    client_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class PaymentView:
    """A payment and what came back of it.

    ``created``: nobody knows yet; it is looked after until somebody does. ``needs_action``: the card's owner confirms
    it at ``action_url``.
    """

    id: str
    organization_id: str
    created_at: datetime
    updated_at: datetime
    amount_nanos: int
    currency: str
    status: PaymentStatus
    is_automatic: bool
    card_id: str
    card_label: str
    action_url: str | None
    failure_code: str | None
    failure_message: str | None
    refunded_nanos: int
    disputed_nanos: int


@dataclass(frozen=True)
class RefundView:
    """A part of a payment that goes, or went, back to the card."""

    id: str
    payment_id: str
    organization_id: str
    created_at: datetime
    updated_at: datetime
    amount_nanos: int
    reason: str
    is_external: bool
    status: RefundStatus
    failure_message: str | None


@dataclass(frozen=True)
class DisputeView:
    """A payment that the card's owner contests. ``taken_nanos`` is what the balance is without because of it."""

    id: str
    payment_id: str
    organization_id: str
    created_at: datetime
    updated_at: datetime
    amount_nanos: int
    status: str
    reason: str
    taken_nanos: int


@dataclass(frozen=True)
class AutoRechargeView:
    """How an organization's card is charged by itself. ``notice`` says why it waits or was switched off."""

    organization_id: str
    is_enabled: bool
    threshold_nanos: int
    target_nanos: int
    failures: int  # in a row
    notice: str | None
