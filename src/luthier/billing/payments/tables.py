"""Tables of customers, cards, payments, refunds, disputes, automatic recharging and webhooks."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from luthier.db import Base
from luthier.db.orm import Nanos

_ONE_AUTOMATIC = sa.text("is_automatic = 1 AND status IN ('open', 'requires_action')")


class Customer(Base):
    """An organization as the processor knows it. ``processor_id`` is unknown until the processor has answered."""

    __tablename__ = "payment_customers"
    __table_args__ = (sa.UniqueConstraint("processor_id"), {"sqlite_strict": True})

    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"), primary_key=True)
    created_at: Mapped[datetime]
    processor_id: Mapped[str | None]


class Card(Base):
    """A saved card, as the processor last told it; the id is the processor's. Its number is nowhere here."""

    __tablename__ = "payment_cards"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"), index=True)
    created_at: Mapped[datetime]
    brand: Mapped[str]
    last4: Mapped[str]
    exp_month: Mapped[int]
    exp_year: Mapped[int]
    is_default: Mapped[int]


class Payment(Base):
    """An amount to be charged to a card: written before the processor is called, settled by what it answers.

    ``status``: open (nobody knows yet), requires_action (the card's owner must confirm), succeeded, failed, canceled.
    What is sent to the processor stands here whole, so that a repeat sends the same.
    """

    __tablename__ = "payments"
    __table_args__ = (
        sa.UniqueConstraint("processor_id"),
        sa.UniqueConstraint("organization_id", "request_key"),
        sa.CheckConstraint("status IN ('open', 'requires_action', 'succeeded', 'failed', 'canceled')", name="status"),
        sa.CheckConstraint("amount_nanos > 0", name="amount"),
        sa.CheckConstraint("refunded_nanos >= 0 AND disputed_nanos >= 0", name="taken_back"),
        sa.Index("ix_payments_organization", "organization_id", "created_at"),
        sa.Index("ix_payments_due", "status", "next_look_at"),
        sa.Index(
            "uq_payments_one_automatic",
            "organization_id",
            unique=True,
            sqlite_where=_ONE_AUTOMATIC,
            postgresql_where=_ONE_AUTOMATIC,
        ),
        {"sqlite_strict": True},
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    amount_nanos: Mapped[int] = mapped_column(Nanos)
    is_automatic: Mapped[int]  # made by automatic recharging; of these one at a time is under way
    customer_id: Mapped[str]  # the processor's
    card_id: Mapped[str]  # the processor's; the card may be gone since
    request_key: Mapped[str | None]  # the caller's Idempotency-Key

    status: Mapped[str]
    processor_id: Mapped[str | None]
    failure_code: Mapped[str | None]
    failure_message: Mapped[str | None]
    refunded_nanos: Mapped[int] = mapped_column(Nanos, server_default=sa.text("0"))
    disputed_nanos: Mapped[int] = mapped_column(Nanos, server_default=sa.text("0"))  # taken by disputes that stand
    looks: Mapped[int] = mapped_column(server_default=sa.text("0"))
    next_look_at: Mapped[datetime]  # when to ask the processor, unless settled before


class PaymentRefund(Base):
    """A part of a payment that goes back to the card. The balance gives it up when the row is written.

    ``status``: open, succeeded, failed (the balance has it again).
    """

    __tablename__ = "payment_refunds"
    __table_args__ = (
        sa.UniqueConstraint("processor_id"),
        sa.UniqueConstraint("payment_id", "request_key"),
        sa.CheckConstraint("status IN ('open', 'succeeded', 'failed')", name="status"),
        sa.CheckConstraint("amount_nanos > 0", name="amount"),
        sa.Index("ix_payment_refunds_due", "status", "next_look_at"),
        {"sqlite_strict": True},
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    payment_id: Mapped[str] = mapped_column(sa.ForeignKey("payments.id"))
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    amount_nanos: Mapped[int] = mapped_column(Nanos)
    request_key: Mapped[str | None]

    status: Mapped[str]
    processor_id: Mapped[str | None]
    failure_message: Mapped[str | None]
    looks: Mapped[int] = mapped_column(server_default=sa.text("0"))
    next_look_at: Mapped[datetime]


class Dispute(Base):
    """A payment that the card's owner contests; the id is the processor's. While it stands, the balance is without it."""

    __tablename__ = "payment_disputes"
    __table_args__ = (sa.CheckConstraint("taken_nanos >= 0", name="taken"), {"sqlite_strict": True})

    id: Mapped[str] = mapped_column(primary_key=True)
    payment_id: Mapped[str] = mapped_column(sa.ForeignKey("payments.id"), index=True)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    status: Mapped[str]  # the processor's word
    taken_nanos: Mapped[int] = mapped_column(Nanos)


class AutoRecharge(Base):
    """When an organization's funds fall below ``threshold_nanos``, its card is charged up to ``target_nanos``."""

    __tablename__ = "auto_recharges"
    __table_args__ = (
        sa.CheckConstraint("threshold_nanos > 0 AND target_nanos > threshold_nanos", name="amounts"),
        {"sqlite_strict": True},
    )

    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"), primary_key=True)
    updated_at: Mapped[datetime]
    is_enabled: Mapped[int]
    threshold_nanos: Mapped[int] = mapped_column(Nanos)
    target_nanos: Mapped[int] = mapped_column(Nanos)
    failures: Mapped[int] = mapped_column(server_default=sa.text("0"))  # in a row
    next_attempt_at: Mapped[datetime | None]  # None: at once
    notice: Mapped[str | None]  # what its owner should know: why it waits or was switched off


class WebhookEvent(Base):
    """A webhook that was dealt with, so that the same again does nothing."""

    __tablename__ = "payment_webhooks"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    received_at: Mapped[datetime] = mapped_column(index=True)
