"""Tables of customers, cards, payments, refunds, disputes, automatic recharging and webhooks."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from luthier.db import Base
from luthier.db.orm import Nanos


class PaymentCustomer(Base):
    """An organization as the processor knows it. ``ref`` is unknown until the processor has answered."""

    __tablename__ = "payment_customers"
    __table_args__ = (sa.UniqueConstraint("ref"), {"sqlite_strict": True})

    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"), primary_key=True)
    created_at: Mapped[datetime]
    ref: Mapped[str | None]


class Card(Base):
    """A saved card; ``ref`` is the processor's name of it. Its number is nowhere here.

    A removed card stays as a row: payments name it. ``default_key`` is the organization's id in its default card and
    nowhere else. ``detached_at`` says that the processor has forgotten the card, too.
    """

    __tablename__ = "cards"
    __table_args__ = (
        sa.UniqueConstraint("ref"),
        sa.UniqueConstraint("default_key"),
        sa.CheckConstraint("default_key IS NULL OR default_key = organization_id", name="default"),
        sa.CheckConstraint("default_key IS NULL OR removed_at IS NULL", name="removed"),
        sa.CheckConstraint("detached_at IS NULL OR removed_at IS NOT NULL", name="detached"),
        sa.Index("ix_cards_organization", "organization_id", "created_at"),
        {"sqlite_strict": True},
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    created_at: Mapped[datetime]
    ref: Mapped[str]
    brand: Mapped[str]
    last4: Mapped[str]
    exp_month: Mapped[int]
    exp_year: Mapped[int]
    default_key: Mapped[str | None]
    removed_at: Mapped[datetime | None]
    detached_at: Mapped[datetime | None]


class CardSetup(Base):
    """A card on its way to being saved. Its client secret is kept nowhere."""

    __tablename__ = "card_setups"
    __table_args__ = (
        sa.UniqueConstraint("ref"),
        sa.CheckConstraint("kind IN ('hosted', 'page', 'token')", name="kind"),
        sa.CheckConstraint(
            "status IN ('canceled', 'created', 'failed', 'needs_action', 'open', 'succeeded')", name="status"
        ),
        sa.CheckConstraint("(card_id IS NOT NULL) = (status = 'succeeded')", name="card"),
        sa.CheckConstraint(
            "(next_look_at IS NULL) = (status IN ('canceled', 'failed', 'succeeded'))", name="next_look"
        ),
        sa.Index("ix_card_setups_due", "next_look_at"),
        {"sqlite_strict": True},
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    created_at: Mapped[datetime]
    customer_ref: Mapped[str]
    kind: Mapped[str]
    token: Mapped[str | None]
    return_url: Mapped[str]

    status: Mapped[str]
    ref: Mapped[str | None]
    action_url: Mapped[str | None]
    card_id: Mapped[str | None] = mapped_column(sa.ForeignKey("cards.id"))
    failure_code: Mapped[str | None]
    failure_message: Mapped[str | None]
    looks: Mapped[int] = mapped_column(server_default=sa.text("0"))
    next_look_at: Mapped[datetime | None]  # when to ask the processor; None when it is settled


class Payment(Base):
    """An amount to be charged to a card: written before the processor is called, settled by what it answers.

    ``status``: created (nobody knows yet), needs_action (the card's owner must confirm), succeeded, failed, canceled.
    What is sent to the processor stands here whole, so that a repeat sends the same. ``open_key`` is the organization's
    id while an automatic payment is under way: there is one at a time.
    """

    __tablename__ = "payments"
    __table_args__ = (
        sa.UniqueConstraint("ref"),
        sa.UniqueConstraint("open_key"),
        sa.UniqueConstraint("organization_id", "request_key"),
        sa.CheckConstraint("status IN ('canceled', 'created', 'failed', 'needs_action', 'succeeded')", name="status"),
        sa.CheckConstraint("amount_nanos > 0", name="amount"),
        sa.CheckConstraint("refunded_nanos BETWEEN 0 AND amount_nanos", name="refunded"),
        sa.CheckConstraint("disputed_nanos >= 0", name="disputed"),
        sa.CheckConstraint("is_automatic IN (0, 1)", name="is_automatic"),
        sa.CheckConstraint(
            "(open_key IS NOT NULL) = (is_automatic = 1 AND status IN ('created', 'needs_action'))", name="open_key"
        ),
        sa.CheckConstraint(
            "(next_look_at IS NULL) = (status IN ('canceled', 'failed', 'succeeded'))", name="next_look"
        ),
        sa.Index("ix_payments_organization", "organization_id", "created_at"),
        sa.Index("ix_payments_due", "next_look_at"),
        {"sqlite_strict": True},
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    amount_nanos: Mapped[int] = mapped_column(Nanos)
    currency: Mapped[str]
    customer_ref: Mapped[str]
    card_id: Mapped[str] = mapped_column(sa.ForeignKey("cards.id"))
    is_automatic: Mapped[int]
    open_key: Mapped[str | None]
    request_key: Mapped[str | None]  # the caller's Idempotency-Key
    return_url: Mapped[str | None]

    status: Mapped[str]
    ref: Mapped[str | None]
    action_url: Mapped[str | None]
    failure_code: Mapped[str | None]
    failure_message: Mapped[str | None]
    refunded_nanos: Mapped[int] = mapped_column(Nanos, server_default=sa.text("0"))
    disputed_nanos: Mapped[int] = mapped_column(Nanos, server_default=sa.text("0"))  # taken by disputes that stand
    looks: Mapped[int] = mapped_column(server_default=sa.text("0"))
    next_look_at: Mapped[datetime | None]  # when to ask the processor; None when it is settled


class PaymentRefund(Base):
    """A part of a payment that goes back to the card. The balance gives it up when the row is written.

    ``status``: created, succeeded, failed (the balance has it again). ``is_external``: made at the processor, not here.
    ``moves`` counts the entries that it has brought: one that was given up may have been made all the same.
    """

    __tablename__ = "payment_refunds"
    __table_args__ = (
        sa.UniqueConstraint("ref"),
        sa.UniqueConstraint("payment_id", "request_key"),
        sa.CheckConstraint("status IN ('created', 'failed', 'succeeded')", name="status"),
        sa.CheckConstraint("amount_nanos > 0", name="amount"),
        sa.CheckConstraint("is_external IN (0, 1)", name="is_external"),
        sa.CheckConstraint("(next_look_at IS NULL) = (status IN ('failed', 'succeeded'))", name="next_look"),
        sa.Index("ix_payment_refunds_due", "next_look_at"),
        {"sqlite_strict": True},
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    payment_id: Mapped[str] = mapped_column(sa.ForeignKey("payments.id"))
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    amount_nanos: Mapped[int] = mapped_column(Nanos)
    reason: Mapped[str]
    request_key: Mapped[str | None]
    is_external: Mapped[int]
    moves: Mapped[int]

    status: Mapped[str]
    ref: Mapped[str | None]
    failure_message: Mapped[str | None]
    looks: Mapped[int] = mapped_column(server_default=sa.text("0"))
    next_look_at: Mapped[datetime | None]


class Dispute(Base):
    """A payment that the card's owner contests; the id is the processor's. While it stands, the balance is without it.

    ``moves`` counts the entries that it has brought: an appeal may turn it more than once.
    """

    __tablename__ = "disputes"
    __table_args__ = (
        sa.CheckConstraint("taken_nanos BETWEEN 0 AND amount_nanos", name="taken"),
        sa.Index("ix_disputes_organization", "organization_id", "created_at"),
        {"sqlite_strict": True},
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    payment_id: Mapped[str] = mapped_column(sa.ForeignKey("payments.id"))
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    amount_nanos: Mapped[int] = mapped_column(Nanos)
    status: Mapped[str]  # the processor's word
    reason: Mapped[str]
    taken_nanos: Mapped[int] = mapped_column(Nanos)
    moves: Mapped[int]


class AutoRecharge(Base):
    """When an organization's available balance falls below the threshold, its card is charged up to the target.

    How often it failed in a row is told by the automatic payments since ``configured_at``.
    """

    __tablename__ = "auto_recharges"
    __table_args__ = (
        sa.CheckConstraint("threshold_nanos > 0 AND target_nanos > threshold_nanos", name="amounts"),
        sa.CheckConstraint("is_enabled IN (0, 1)", name="is_enabled"),
        {"sqlite_strict": True},
    )

    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"), primary_key=True)
    is_enabled: Mapped[int]
    threshold_nanos: Mapped[int] = mapped_column(Nanos)
    target_nanos: Mapped[int] = mapped_column(Nanos)
    configured_at: Mapped[datetime]
    notice: Mapped[str | None]  # why it was switched off


class WebhookEvent(Base):
    """A webhook that came: dealt with once ``applied_at`` is set, so that the same again does nothing."""

    __tablename__ = "webhook_events"
    __table_args__ = (sa.Index("ix_webhook_events_received", "received_at"), {"sqlite_strict": True})

    id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    received_at: Mapped[datetime]
    applied_at: Mapped[datetime | None]
