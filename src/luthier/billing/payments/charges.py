"""Payments: a card is charged, and the balance gets the amount, once.

Intent row first, then the call with a key made from the row, then the record. What became of a lost answer is found out
by ``settle``: it looks for the payment, and sends the same order again where there is none.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy.exc import IntegrityError

from luthier import faults, ids
from luthier.billing import ledger
from luthier.billing.ledger import Cause
from luthier.billing.money import format_money
from luthier.billing.payments import amounts, cards, pace, queries
from luthier.billing.payments.processor import (
    ChargeOrder,
    Failure,
    PaymentState,
    Processor,
    ProcessorRefused,
    ProcessorUnreachable,
)
from luthier.billing.payments.refusals import refuse_declined, refuse_unreachable
from luthier.billing.payments.schemas import PaymentView
from luthier.billing.payments.tables import Card, Payment
from luthier.billing.policy import Policy
from luthier.db import Database, Session
from luthier.errors import Conflict, InvalidRequest, NotFound, Unprocessable
from luthier.log import get_logger

LIST_LIMIT: Final = 100
PAYMENTS_A_ROUND: Final = 20
MAX_KEY_LENGTH: Final = 255
_OPEN: Final = frozenset({"created", "needs_action"})
_NOT_CHARGED: Final = Failure("not_charged", "the payment processor could not be reached, and has not charged it")
_NOT_CONFIRMED: Final = Failure("not_confirmed", "its owner did not confirm the payment within a day")

_log = get_logger(__name__)


def pay(
    database: Database,
    processor: Processor,
    organization_id: str,
    amount_nanos: int,
    *,
    return_url: str,
    request_key: str | None,
    card_id: str | None = None,
    policy: Policy,
    now: datetime,
) -> PaymentView:
    """Charge an organization's card: the default one, or the one named. The same ``request_key`` has one effect.

    The view is ``succeeded``, or ``needs_action`` with the page where the card's owner confirms it (they come back to
    ``return_url``), or ``created`` when the answer was lost: it is looked after then. Raises PaymentRequired when the
    card is declined, InvalidRequest for an amount that no card can be charged, Conflict without a card, Unprocessable
    when the key was used for another payment.
    """
    processor.require_ready()
    amounts.require_chargeable(amount_nanos, policy.currency)
    require_key(request_key)
    with database.transaction() as tx:
        view = _find_repeated(tx, organization_id, request_key, amount_nanos)
        order = None
        if view is None:
            order = begin(
                tx,
                _choose_card(tx, organization_id, card_id),
                amount_nanos,
                currency=policy.currency,
                return_url=return_url,
                request_key=request_key,
                is_automatic=False,
                now=now,
            )
            if order is None:  # another call with the key came first
                view = _find_repeated(tx, organization_id, request_key, amount_nanos)
    if order is not None:
        view = execute(database, processor, order, point="payments", now=now)
    assert view is not None, f"the payment of {request_key} is there and is not"
    if view.status in {"failed", "canceled"}:
        raise refuse_declined(view)
    return view


def require_key(request_key: str | None) -> None:
    """Raise InvalidRequest for a caller's key that is empty or too long."""
    if request_key is not None and not 0 < len(request_key) <= MAX_KEY_LENGTH:
        raise InvalidRequest(
            "invalid_idempotency_key",
            f"an Idempotency-Key has 1 to {MAX_KEY_LENGTH} characters, this one {len(request_key)}",
            hint="send a UUID, or leave the header out",
        )


def _find_repeated(tx: Session, organization_id: str, request_key: str | None, amount_nanos: int) -> PaymentView | None:
    """Return the payment that the caller's key made before. Raises Unprocessable when that was another amount."""
    row = request_key and queries.find_payment_by_request(tx, organization_id, request_key)
    if not row:
        return None
    if row.amount_nanos != amount_nanos:
        raise Unprocessable(
            "idempotency_key_reused",
            f"the Idempotency-Key was used for another payment: {request_key}",
            hint="send a new key with a new request",
        )
    return get_payment(tx, organization_id, row.id)


def _choose_card(tx: Session, organization_id: str, card_id: str | None) -> Card:
    chosen = (
        cards.find_default(tx, organization_id) if card_id is None else cards.get_card(tx, organization_id, card_id)
    )
    if chosen is None:
        raise Conflict(
            "no_card",
            "the organization has no card to charge",
            hint="add one: luthier billing cards add",
        )
    card = queries.find_card(tx, chosen.id)
    assert card is not None, f"card {chosen.id} is there and is not"
    return card


def begin(
    tx: Session,
    card: Card,
    amount_nanos: int,
    *,
    currency: str,
    return_url: str | None,
    request_key: str | None,
    is_automatic: bool,
    now: datetime,
) -> ChargeOrder | None:
    """Write down that a card is to be charged, and return what is to be asked of the processor after the commit.

    None when there is such a payment already: with the same key, or another automatic one that is under way.
    """
    customer = queries.find_customer(tx, card.organization_id)
    assert customer is not None, f"a card without a customer: {card.id}"
    assert customer.ref is not None, f"a card of a customer without a reference: {card.id}"
    row = Payment(
        id=ids.new_id("pay"),
        organization_id=card.organization_id,
        created_at=now,
        updated_at=now,
        amount_nanos=amount_nanos,
        currency=currency,
        customer_ref=customer.ref,
        card_id=card.id,
        is_automatic=int(is_automatic),
        open_key=card.organization_id if is_automatic else None,
        request_key=request_key,
        return_url=return_url,
        status="created",
        looks=0,
        next_look_at=now + pace.CALL_LEASE,
    )
    try:
        with tx.begin_nested():
            tx.add(row)
    except IntegrityError:
        return None
    return _order(row, card)


def execute(database: Database, processor: Processor, order: ChargeOrder, *, point: str, now: datetime) -> PaymentView:
    """Ask the processor for a payment that was begun, and record its answer; a lost one leaves the payment ``created``."""
    faults.hit(f"{point}.after_intent")
    try:
        state = _charge(processor, order)
    except ProcessorUnreachable as error:
        _log.warning("payment without an answer", payment=order.payment_id, reason=str(error))
        with database.transaction() as tx:
            row = queries.lock_payment(tx, order.payment_id)
            if row is not None and row.status == "created":
                row.next_look_at = pace.plan_look(0, now)
            return get_payment(tx, order.organization_id, order.payment_id)
    faults.hit(f"{point}.before_record")
    view = record(database, order.payment_id, state, now=now)
    faults.hit(f"{point}.after_record")
    return view


def _charge(processor: Processor, order: ChargeOrder) -> PaymentState:
    try:
        return processor.charge(order)
    except ProcessorRefused as error:
        return _fail(order, Failure(error.code, error.message))


def _fail(order: ChargeOrder, failure: Failure, ref: str | None = None) -> PaymentState:
    return PaymentState(ref, order.payment_id, order.amount_nanos, "failed", failure=failure)


def record(database: Database, payment_id: str, state: PaymentState, *, now: datetime) -> PaymentView:
    """Keep what the processor says of a payment; the same again, or older news, changes nothing."""
    with database.transaction() as tx:
        row = queries.lock_payment(tx, payment_id)
        assert row is not None, f"payment {payment_id} is there and is not"
        assert state.amount_nanos == row.amount_nanos, (
            f"payment {payment_id} is of {row.amount_nanos}, at the processor of {state.amount_nanos}"
        )
        _apply(tx, row, state, now=now)
        tx.flush()
        return get_payment(tx, row.organization_id, row.id)


def _apply(tx: Session, row: Payment, state: PaymentState, *, now: datetime) -> None:
    """Bring a locked payment to what the processor says. What it says is paid is paid, whatever was thought before."""
    row.ref = row.ref or state.ref
    if row.status == "succeeded" or (row.status not in _OPEN and state.status != "succeeded"):
        return
    row.updated_at = now
    if state.status in {"processing", "needs_action"}:
        if state.status == "needs_action":
            row.status, row.action_url = "needs_action", state.action_url
        if not row.looks:  # the call is over: no need to wait for the end of its lease
            row.next_look_at = pace.plan_look(0, now)
        return
    row.status, row.next_look_at, row.open_key, row.action_url = state.status, None, None, None
    failure = state.failure or (_NOT_CONFIRMED if state.status == "canceled" else None)
    row.failure_code = row.failure_message = None
    if state.status == "succeeded":
        _deposit(tx, row, now=now)
    elif failure is not None:
        row.failure_code, row.failure_message = failure.code, failure.message


def _deposit(tx: Session, row: Payment, *, now: datetime) -> None:
    card = queries.find_card(tx, row.card_id)
    assert card is not None, f"payment {row.id} without its card"
    words = "Recharged by itself" if row.is_automatic else "Paid"
    ledger.deposit(
        tx,
        row.organization_id,
        row.amount_nanos,
        key=f"payment:{row.id}",
        cause=Cause("payment", row.id),
        note=f"{words} {format_money(row.amount_nanos, row.currency)} by {cards.view_card(card).label}",
        now=now,
    )


def settle(database: Database, processor: Processor, *, now: datetime) -> None:
    """Find out what became of payments whose answer was lost, and of those that wait for the card's owner."""
    with database.transaction() as tx:
        due = queries.claim_due(tx, Payment, now=now, limit=PAYMENTS_A_ROUND)
        for row in due:
            row.looks += 1
            row.next_look_at = pace.plan_look(row.looks, now)
        found = [queries.find_card(tx, row.card_id) for row in due]
    for row, card in zip(due, found, strict=True):
        assert card is not None, f"payment {row.id} without its card"
        try:
            state = _ask(processor, row, _order(row, card), now)
        except ProcessorUnreachable as error:
            _log.warning("payment not settled yet", payment=row.id, reason=str(error))
            continue
        faults.hit("payments.before_record")
        view = record(database, row.id, state, now=now)
        faults.hit("payments.after_record")
        _log.info("payment looked at", payment=row.id, status=view.status)


def _ask(processor: Processor, row: Payment, order: ChargeOrder, now: datetime) -> PaymentState:
    """Return how a payment stands. One that the processor does not know is asked for again, but not for long."""
    age = now - row.created_at
    if row.ref is not None:
        try:
            state = processor.fetch_payment(row.ref)
            if state.status == "needs_action" and age > pace.ACTION_WITHIN:
                state = processor.cancel_payment(row.ref)
        except ProcessorRefused as error:
            return _fail(order, Failure(error.code, error.message), row.ref)
        return state
    try:
        found = processor.find_payment(order, since=row.created_at)
    except ProcessorRefused as error:
        return _fail(order, Failure(error.code, error.message))
    if found is not None:
        return found
    if age > pace.REPEAT_WITHIN:
        return _fail(order, _NOT_CHARGED)
    return _charge(processor, order)


def check_payment(
    database: Database, processor: Processor, organization_id: str, payment_id: str, *, now: datetime
) -> PaymentView:
    """Ask the processor how a payment stands, unless that is settled or unknown to it. Raises NotFound, Unavailable."""
    with database.read() as tx:
        view = get_payment(tx, organization_id, payment_id)
        found = queries.find_payment(tx, payment_id)
    if found is None or found[0].ref is None or view.status not in _OPEN:
        return view
    try:
        state = processor.fetch_payment(found[0].ref)
    except ProcessorUnreachable as error:
        raise refuse_unreachable(error) from None
    return record(database, payment_id, state, now=now)


def get_payment(tx: Session, organization_id: str, payment_id: str) -> PaymentView:
    """Return a payment, as it was last told. Raises NotFound."""
    found = queries.find_payment(tx, payment_id)
    if found is None or found[0].organization_id != organization_id:
        raise NotFound(
            "payment_not_found",
            f"the organization has no payment with this id: {payment_id}",
            hint="list them: luthier billing payments",
        )
    return _view(*found)


def list_payments(tx: Session, organization_id: str, *, limit: int = LIST_LIMIT) -> list[PaymentView]:
    """Return an organization's payments, newest first."""
    return [_view(row, card) for row, card in queries.list_payments(tx, organization_id, limit=limit)]


def _order(row: Payment, card: Card) -> ChargeOrder:
    return ChargeOrder(
        payment_id=row.id,
        organization_id=row.organization_id,
        customer_ref=row.customer_ref,
        card_ref=card.ref,
        amount_nanos=row.amount_nanos,
        currency=row.currency,
        is_attended=not row.is_automatic,
        return_url=row.return_url,
    )


def _view(row: Payment, card: Card) -> PaymentView:
    return PaymentView(
        id=row.id,
        organization_id=row.organization_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        amount_nanos=row.amount_nanos,
        currency=row.currency,
        status=row.status,  # type: ignore[arg-type]  # a CHECK holds the column to these
        is_automatic=bool(row.is_automatic),
        card_id=row.card_id,
        card_label=cards.view_card(card).label,
        action_url=row.action_url,
        failure_code=row.failure_code,
        failure_message=row.failure_message,
        refunded_nanos=row.refunded_nanos,
        disputed_nanos=row.disputed_nanos,
    )
