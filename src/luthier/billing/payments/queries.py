"""Every statement on the tables of payments, named."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from luthier.billing.payments.pace import get_horizon
from luthier.billing.payments.tables import (
    AutoRecharge,
    Card,
    CardSetup,
    Dispute,
    Payment,
    PaymentCustomer,
    PaymentRefund,
    WebhookEvent,
)
from luthier.db import Base, Session

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_FRESH = {"populate_existing": True}
Row = TypeVar("Row", bound=Base)
Watched = TypeVar("Watched", CardSetup, Payment, PaymentRefund)


def _insert_if_new(tx: Session, table: type[Base], **values: object) -> None:
    tx.execute(_INSERT[tx.get_bind().dialect.name](table).values(**values).on_conflict_do_nothing())


def _lock(tx: Session, statement: sa.Select[Row]) -> Row | None:
    """Read a row as it is now, and keep others from changing it until the transaction ends."""
    return tx.execute(statement.with_for_update(), execution_options=_FRESH).scalar_one_or_none()


def claim_due(tx: Session, table: type[Watched], *, now: datetime, limit: int) -> Sequence[Watched]:
    """Take rows that are not settled and whose next look is due; those that another supervisor takes are passed over."""
    is_due = sa.or_(table.next_look_at <= now, table.next_look_at > get_horizon(now))
    statement = sa.select(table).where(is_due).order_by(table.next_look_at, table.id).limit(limit)
    return tx.execute(statement.with_for_update(skip_locked=True), execution_options=_FRESH).scalars().all()


def find_customer(tx: Session, organization_id: str) -> PaymentCustomer | None:
    """Read an organization's customer."""
    return tx.execute(
        sa.select(PaymentCustomer).where(PaymentCustomer.organization_id == organization_id), execution_options=_FRESH
    ).scalar_one_or_none()


def ensure_customer(tx: Session, organization_id: str, *, now: datetime) -> None:
    """Make an organization's customer, unless it is there."""
    _insert_if_new(tx, PaymentCustomer, organization_id=organization_id, created_at=now)


def set_customer_ref(tx: Session, organization_id: str, ref: str) -> None:
    """Keep what the processor calls a customer, unless that is known."""
    statement = sa.update(PaymentCustomer).where(
        PaymentCustomer.organization_id == organization_id, PaymentCustomer.ref.is_(None)
    )
    tx.execute(statement.values(ref=ref), execution_options={"synchronize_session": False})


def lock_customer(tx: Session, organization_id: str) -> PaymentCustomer | None:
    """Read an organization's customer, and keep others from changing its cards."""
    return _lock(tx, sa.select(PaymentCustomer).where(PaymentCustomer.organization_id == organization_id))


def list_cards(tx: Session, organization_id: str) -> Sequence[Card]:
    """Read the cards that are not removed, oldest first."""
    statement = sa.select(Card).where(Card.organization_id == organization_id, Card.removed_at.is_(None))
    return tx.execute(statement.order_by(Card.created_at, Card.id), execution_options=_FRESH).scalars().all()


def find_card(tx: Session, card_id: str) -> Card | None:
    """Read a card, removed or not."""
    return tx.execute(sa.select(Card).where(Card.id == card_id), execution_options=_FRESH).scalar_one_or_none()


def find_card_by_ref(tx: Session, ref: str) -> Card | None:
    """Read a card by the processor's name of it."""
    return tx.execute(sa.select(Card).where(Card.ref == ref), execution_options=_FRESH).scalar_one_or_none()


def list_cards_to_detach(tx: Session, *, before: datetime, limit: int) -> Sequence[Card]:
    """Read the cards that were removed a while ago and that the processor may still know."""
    statement = sa.select(Card).where(Card.removed_at <= before, Card.detached_at.is_(None))
    return tx.execute(statement.order_by(Card.removed_at).limit(limit)).scalars().all()


def find_setup(tx: Session, setup_id: str) -> CardSetup | None:
    """Read the saving of a card."""
    return tx.execute(sa.select(CardSetup).where(CardSetup.id == setup_id)).scalar_one_or_none()


def lock_setup(tx: Session, setup_id: str) -> CardSetup | None:
    """Read the saving of a card to change it."""
    return _lock(tx, sa.select(CardSetup).where(CardSetup.id == setup_id))


def find_payment(tx: Session, payment_id: str) -> tuple[Payment, Card] | None:
    """Read a payment and its card."""
    statement = sa.select(Payment, Card).join(Card, Card.id == Payment.card_id).where(Payment.id == payment_id)
    row = tx.execute(statement, execution_options=_FRESH).one_or_none()
    return None if row is None else (row[0], row[1])


def lock_payment(tx: Session, payment_id: str) -> Payment | None:
    """Read a payment to change it."""
    return _lock(tx, sa.select(Payment).where(Payment.id == payment_id))


def find_payment_by_request(tx: Session, organization_id: str, request_key: str) -> Payment | None:
    """Read the payment that a caller's key made."""
    statement = sa.select(Payment).where(Payment.organization_id == organization_id, Payment.request_key == request_key)
    return tx.execute(statement, execution_options=_FRESH).scalar_one_or_none()


def find_payment_by_ref(tx: Session, ref: str) -> Payment | None:
    """Read a payment by the processor's name of it."""
    return tx.execute(sa.select(Payment).where(Payment.ref == ref)).scalar_one_or_none()


def list_payments(tx: Session, organization_id: str, *, limit: int) -> Sequence[tuple[Payment, Card]]:
    """Read payments and their cards, newest first."""
    statement = (
        sa.select(Payment, Card)
        .join(Card, Card.id == Payment.card_id)
        .where(Payment.organization_id == organization_id)
        .order_by(Payment.created_at.desc(), Payment.id.desc())
        .limit(limit)
    )
    return [(payment, card) for payment, card in tx.execute(statement)]


def find_open_automatic(tx: Session, organization_id: str) -> Payment | None:
    """Read the automatic payment that is under way."""
    return tx.execute(sa.select(Payment).where(Payment.open_key == organization_id)).scalar_one_or_none()


def list_automatic(tx: Session, organization_id: str, *, since: datetime, limit: int) -> Sequence[Payment]:
    """Read the last automatic payments that were begun since then, newest first."""
    statement = sa.select(Payment).where(
        Payment.organization_id == organization_id, Payment.is_automatic == 1, Payment.created_at >= since
    )
    return tx.execute(statement.order_by(Payment.created_at.desc(), Payment.id.desc()).limit(limit)).scalars().all()


def lock_refund(tx: Session, refund_id: str) -> PaymentRefund | None:
    """Read a refund to change it."""
    return _lock(tx, sa.select(PaymentRefund).where(PaymentRefund.id == refund_id))


def find_refund(tx: Session, refund_id: str) -> PaymentRefund | None:
    """Read a refund."""
    statement = sa.select(PaymentRefund).where(PaymentRefund.id == refund_id)
    return tx.execute(statement, execution_options=_FRESH).scalar_one_or_none()


def find_refund_by_request(tx: Session, payment_id: str, request_key: str) -> PaymentRefund | None:
    """Read the refund that a caller's key made."""
    statement = sa.select(PaymentRefund).where(
        PaymentRefund.payment_id == payment_id, PaymentRefund.request_key == request_key
    )
    return tx.execute(statement, execution_options=_FRESH).scalar_one_or_none()


def find_refund_by_ref(tx: Session, ref: str) -> PaymentRefund | None:
    """Read a refund by the processor's name of it."""
    return tx.execute(sa.select(PaymentRefund).where(PaymentRefund.ref == ref)).scalar_one_or_none()


def list_refunds(tx: Session, payment_id: str) -> Sequence[PaymentRefund]:
    """Read a payment's refunds, oldest first."""
    statement = sa.select(PaymentRefund).where(PaymentRefund.payment_id == payment_id)
    return tx.execute(statement.order_by(PaymentRefund.created_at, PaymentRefund.id)).scalars().all()


def find_dispute(tx: Session, dispute_id: str) -> Dispute | None:
    """Read a dispute."""
    return tx.execute(sa.select(Dispute).where(Dispute.id == dispute_id), execution_options=_FRESH).scalar_one_or_none()


def list_disputes(tx: Session, organization_id: str) -> Sequence[Dispute]:
    """Read an organization's disputes, newest first."""
    statement = sa.select(Dispute).where(Dispute.organization_id == organization_id)
    return tx.execute(statement.order_by(Dispute.created_at.desc(), Dispute.id.desc())).scalars().all()


def find_recharge(tx: Session, organization_id: str) -> AutoRecharge | None:
    """Read how an organization is recharged."""
    return tx.get(AutoRecharge, organization_id, populate_existing=True)


def lock_recharge(tx: Session, organization_id: str) -> AutoRecharge | None:
    """Read how an organization is recharged, and keep others from recharging it."""
    return _lock(tx, sa.select(AutoRecharge).where(AutoRecharge.organization_id == organization_id))


def upsert_recharge(tx: Session, organization_id: str, values: dict[str, object]) -> None:
    """Set how an organization is recharged."""
    insert = _INSERT[tx.get_bind().dialect.name](AutoRecharge)
    statement = insert.values(organization_id=organization_id, **values)
    tx.execute(
        statement.on_conflict_do_update(index_elements=["organization_id"], set_=values),
        execution_options={"synchronize_session": False},
    )


def list_recharged(tx: Session) -> Sequence[AutoRecharge]:
    """Read the organizations that are recharged by themselves."""
    statement = sa.select(AutoRecharge).where(AutoRecharge.is_enabled == 1)
    return tx.execute(statement.order_by(AutoRecharge.organization_id)).scalars().all()


def find_event(tx: Session, event_id: str) -> WebhookEvent | None:
    """Read a webhook that came."""
    return tx.execute(sa.select(WebhookEvent).where(WebhookEvent.id == event_id)).scalar_one_or_none()


def ensure_event(tx: Session, event_id: str, *, type: str, now: datetime) -> None:
    """Keep that a webhook came, unless it came before."""
    _insert_if_new(tx, WebhookEvent, id=event_id, type=type, received_at=now)


def mark_event_applied(tx: Session, event_id: str, *, now: datetime) -> None:
    """Keep that a webhook was dealt with."""
    statement = sa.update(WebhookEvent).where(WebhookEvent.id == event_id, WebhookEvent.applied_at.is_(None))
    tx.execute(statement.values(applied_at=now), execution_options={"synchronize_session": False})


def delete_events_before(tx: Session, before: datetime) -> int:
    """Forget webhooks that nobody sends again."""
    statement = sa.delete(WebhookEvent).where(WebhookEvent.received_at < before)
    result = tx.execute(statement, execution_options={"synchronize_session": False})
    return cast("sa.CursorResult[Any]", result).rowcount
