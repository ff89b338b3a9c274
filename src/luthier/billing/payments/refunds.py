"""Refunds of payments: the balance gives the amount up first, then the card gets it; what is refused comes back.

Refunds that were made at the processor, not here, are found by their webhooks and taken from the balance, too.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from luthier import faults, ids
from luthier.billing import ledger
from luthier.billing.ledger import Cause
from luthier.billing.money import format_money
from luthier.billing.payments import amounts, pace, queries
from luthier.billing.payments.charges import get_payment, require_key
from luthier.billing.payments.processor import (
    Failure,
    Processor,
    ProcessorRefused,
    ProcessorUnreachable,
    RefundOrder,
    RefundState,
)
from luthier.billing.payments.schemas import RefundView
from luthier.billing.payments.tables import Payment, PaymentRefund
from luthier.db import Database, Session
from luthier.errors import Conflict, InvalidRequest, Unprocessable
from luthier.log import get_logger

REFUNDS_A_ROUND: Final = 20
_NOT_REFUNDED: Final = Failure("not_refunded", "the payment processor could not be reached, and has not refunded it")
_EXTERNAL_REASON: Final = "made at the processor"

_log = get_logger(__name__)


def refund_payment(
    database: Database,
    processor: Processor,
    organization_id: str,
    payment_id: str,
    amount_nanos: int | None = None,
    *,
    reason: str,
    request_key: str | None,
    is_forced: bool = False,
    now: datetime,
) -> RefundView:
    """Send a payment back to its card: a part of it, or (None) all that is left. The same ``request_key`` has one effect.

    The view is ``created`` while nobody knows yet: it is looked after then. ``is_forced``, the operator's, lets cash
    go below zero. Raises InvalidRequest for more than is left of the payment or of the cash, Conflict for a payment
    that has not succeeded or when the processor refuses, Unprocessable for a key that was used for another amount.
    """
    require_key(request_key)
    with database.transaction() as tx:
        get_payment(tx, organization_id, payment_id)
        processor.require_ready()
        payment = queries.lock_payment(tx, payment_id)
        assert payment is not None, f"payment {payment_id} is there and is not"
        view = _find_repeated(tx, payment_id, request_key, amount_nanos)
        order = None
        if view is None:
            order = _begin(
                tx, payment, amount_nanos, reason=reason, request_key=request_key, is_forced=is_forced, now=now
            )
    if order is not None:
        view = _execute(database, processor, order, now=now)
    assert view is not None, f"the refund of {request_key} is there and is not"
    if view.status == "failed":
        raise Conflict(
            "refund_refused",
            f"the payment was not refunded: {view.failure_message}; the balance has the amount again",
            hint="see what is left of it: luthier billing payments",
        )
    return view


def _find_repeated(
    tx: Session, payment_id: str, request_key: str | None, amount_nanos: int | None
) -> RefundView | None:
    row = request_key and queries.find_refund_by_request(tx, payment_id, request_key)
    if not row:
        return None
    if amount_nanos is not None and row.amount_nanos != amount_nanos:
        raise Unprocessable(
            "idempotency_key_reused",
            f"the Idempotency-Key was used for another refund: {request_key}",
            hint="send a new key with a new request",
        )
    return _view(row)


def _begin(
    tx: Session,
    payment: Payment,
    amount_nanos: int | None,
    *,
    reason: str,
    request_key: str | None,
    is_forced: bool,
    now: datetime,
) -> RefundOrder:
    """Take the amount from the balance, and write down that it is to go back. The payment is locked."""
    left = _require_refundable(payment)
    nanos = amounts.require_cents(left if amount_nanos is None else amount_nanos, payment.currency)
    if nanos > left:
        raise InvalidRequest(
            "refund_exceeds_payment",
            f"{format_money(nanos, payment.currency)} cannot be refunded: "
            f"{format_money(left, payment.currency)} is left of the payment",
            hint="refund at most what is left",
            param="amount",
        )
    ledger.lock(tx, payment.organization_id, now=now)
    if not is_forced:
        _require_cash(tx, payment, nanos)
    row = _insert(tx, payment, nanos, reason=reason, request_key=request_key, external_ref=None, now=now)
    assert payment.ref is not None, f"payment {payment.id} succeeded without a reference"
    return RefundOrder(refund_id=row.id, payment_ref=payment.ref, amount_nanos=nanos)


def _require_refundable(payment: Payment) -> int:
    """Return what is left of a payment: neither refunded nor disputed."""
    if payment.status != "succeeded":
        raise Conflict(
            "payment_not_refundable",
            f"only a payment that succeeded is refunded; this one is {payment.status}",
            hint="see the payments: luthier billing payments",
        )
    left = payment.amount_nanos - payment.refunded_nanos - payment.disputed_nanos
    if left <= 0:
        raise Conflict(
            "payment_not_refundable",
            "nothing is left of the payment: it was refunded or is disputed",
            hint="see what is left of it: luthier billing payments",
        )
    return left


def _require_cash(tx: Session, payment: Payment, nanos: int) -> None:
    """Raise InvalidRequest when the cash that nothing is held of does not cover a refund: credit is not paid out."""
    cash = ledger.get_balance(tx, payment.organization_id).cash_nanos
    if nanos > cash:
        raise InvalidRequest(
            "refund_exceeds_balance",
            f"{format_money(nanos, payment.currency)} cannot be refunded: the available cash is "
            f"{format_money(cash, payment.currency)}, the rest is spent or held",
            hint="refund at most the available cash, or wait for running jobs",
            param="amount",
        )


def _insert(
    tx: Session,
    payment: Payment,
    nanos: int,
    *,
    reason: str,
    request_key: str | None,
    external_ref: str | None,
    now: datetime,
) -> PaymentRefund:
    """Write a refund down and take its amount from the balance. The payment is locked."""
    is_external = external_ref is not None
    row = PaymentRefund(
        id=ids.new_id("payrefund"),
        payment_id=payment.id,
        organization_id=payment.organization_id,
        created_at=now,
        updated_at=now,
        amount_nanos=nanos,
        reason=reason,
        request_key=request_key,
        is_external=int(is_external),
        status="created",
        ref=external_ref,
        moves=0,
        looks=0,
        next_look_at=pace.plan_look(0, now) if is_external else now + pace.CALL_LEASE,
    )
    tx.add(row)
    _take(tx, payment, row, f"Sent {format_money(nanos, payment.currency)} back to the card: {reason}", now=now)
    return row


def _execute(database: Database, processor: Processor, order: RefundOrder, *, now: datetime) -> RefundView:
    faults.hit("refunds.after_intent")
    try:
        state = _refund(processor, order)
        faults.hit("refunds.before_record")
        view = record(database, order.refund_id, state, now=now)
    except ProcessorUnreachable as error:
        _log.warning("refund without an answer", refund=order.refund_id, reason=str(error))
        with database.transaction() as tx:
            row = _lock(tx, order.refund_id)
            if row.status == "created":
                row.next_look_at = pace.plan_look(0, now)
            return _view(row)
    faults.hit("refunds.after_record")
    return view


def _refund(processor: Processor, order: RefundOrder) -> RefundState:
    try:
        return processor.refund(order)
    except ProcessorRefused as error:
        return _fail(order, Failure(error.code, error.message))


def _fail(order: RefundOrder, failure: Failure) -> RefundState:
    return RefundState(None, order.refund_id, order.payment_ref, order.amount_nanos, "failed", failure)


def record(database: Database, refund_id: str, state: RefundState, *, now: datetime) -> RefundView:
    """Keep what the processor says of a refund; the same again, or older news, changes nothing.

    Raises ProcessorUnreachable when one of ours that is under way must be settled first.
    """
    with database.transaction() as tx:
        found = queries.find_refund(tx, refund_id)
        assert found is not None, f"refund {refund_id} is there and is not"
        payment = queries.lock_payment(tx, found.payment_id)  # before the refund, as everywhere
        assert payment is not None, f"refund {refund_id} without its payment"
        row = _lock(tx, refund_id)
        _apply(tx, payment, row, state, now=now)
        tx.flush()
        return _view(row)


def _apply(tx: Session, payment: Payment, row: PaymentRefund, state: RefundState, *, now: datetime) -> None:
    """Bring a locked refund to what the processor says. A bank may send back even what had succeeded."""
    if row.status == "failed":
        _reopen(tx, payment, row, state, now=now)
    row.ref = row.ref or state.ref
    if state.status == "processing" and row.status == "created" and not row.looks:
        row.next_look_at = pace.plan_look(0, now)
    if row.status == "failed" or state.status in {"processing", row.status}:
        return
    row.updated_at, row.next_look_at, row.status = now, None, state.status
    if state.status == "failed":
        row.failure_message = state.failure.message if state.failure else "the card's bank did not take it"
        _give_back(tx, payment, row, now=now)


def _reopen(tx: Session, payment: Payment, row: PaymentRefund, state: RefundState, *, now: datetime) -> None:
    """Take the amount again for a refund that we gave up and that the processor has made all the same.

    What the processor itself called failed stays so (https://docs.stripe.com/refunds#failed-refunds): other news of
    it is older. By its reference, which only the processor gives, one is told from the other.
    """
    if row.ref is not None or state.status == "failed":
        return
    _require_room(payment, row.amount_nanos)
    row.status, row.failure_message, row.updated_at = "created", None, now
    row.looks, row.next_look_at = 0, pace.plan_look(0, now)
    amount = format_money(row.amount_nanos, payment.currency)
    _take(tx, payment, row, f"Sent {amount} back to the card after all: {row.reason}", now=now)


def _require_room(payment: Payment, nanos: int) -> None:
    """Raise ProcessorUnreachable when a refund that was made is more than is left of the payment.

    There is one of ours under way then, which the processor will refuse.
    """
    if payment.refunded_nanos + nanos > payment.amount_nanos:
        raise ProcessorUnreachable("a refund under way must be settled first")


def _take(tx: Session, payment: Payment, row: PaymentRefund, note: str, *, now: datetime) -> None:
    row.moves += 1
    payment.refunded_nanos += row.amount_nanos
    payment.updated_at = now
    tx.flush()
    ledger.withdraw(
        tx,
        row.organization_id,
        row.amount_nanos,
        key=f"payment_refund:{row.id}:{row.moves}",
        cause=Cause("payment", payment.id),
        note=note,
        now=now,
    )


def _give_back(tx: Session, payment: Payment, row: PaymentRefund, *, now: datetime) -> None:
    row.moves += 1
    payment.refunded_nanos -= row.amount_nanos
    payment.updated_at = now
    ledger.deposit(
        tx,
        row.organization_id,
        row.amount_nanos,
        key=f"payment_refund:{row.id}:{row.moves}",
        cause=Cause("payment", payment.id),
        note=f"Took {format_money(row.amount_nanos, payment.currency)} back, "
        f"which did not reach the card: {row.failure_message}",
        now=now,
    )


def settle(database: Database, processor: Processor, *, now: datetime) -> None:
    """Find out what became of refunds whose answer was lost, and of those that are under way."""
    with database.transaction() as tx:
        due = queries.claim_due(tx, PaymentRefund, now=now, limit=REFUNDS_A_ROUND)
        for row in due:
            row.looks += 1
            row.next_look_at = pace.plan_look(row.looks, now)
        payments = [queries.find_payment(tx, row.payment_id) for row in due]
    for row, found in zip(due, payments, strict=True):
        assert found is not None, f"refund {row.id} without its payment"
        assert found[0].ref is not None, f"payment {row.payment_id} succeeded without a reference"
        order = RefundOrder(row.id, found[0].ref, row.amount_nanos)
        try:
            state = _ask(processor, row, order, now)
            faults.hit("refunds.before_record")
            view = record(database, row.id, state, now=now)
        except ProcessorUnreachable as error:
            _log.warning("refund not settled yet", refund=row.id, reason=str(error))
            continue
        faults.hit("refunds.after_record")
        _log.info("refund looked at", refund=row.id, status=view.status)


def _ask(processor: Processor, row: PaymentRefund, order: RefundOrder, now: datetime) -> RefundState:
    """Return how a refund stands. One that the processor does not know is asked for again, but not for long."""
    try:
        if row.ref is not None:
            return processor.fetch_refund(row.ref)
        found = [one for one in processor.list_refunds(order.payment_ref) if one.refund_id == row.id]
    except ProcessorRefused as error:
        raise ProcessorUnreachable(f"{error.code}: {error.message}") from None  # whether it was sent is not known
    if found:
        return found[0]
    if now - row.created_at > pace.REPEAT_WITHIN:
        return _fail(order, _NOT_REFUNDED)
    return _refund(processor, order)


def sync(database: Database, processor: Processor, payment_id: str, payment_ref: str, *, now: datetime) -> None:
    """Bring all refunds of a payment that succeeded to what the processor says, those made there too."""
    for state in processor.list_refunds(payment_ref):
        refund_id = _find_or_insert(database, payment_id, state, now=now)
        if refund_id is not None:
            record(database, refund_id, state, now=now)


def _find_or_insert(database: Database, payment_id: str, state: RefundState, *, now: datetime) -> str | None:
    """Return our row of a refund, made for one that came about at the processor; None for one that never took money."""
    with database.transaction() as tx:
        payment = queries.lock_payment(tx, payment_id)
        assert payment is not None, f"payment {payment_id} is there and is not"
        known = queries.find_refund_by_ref(tx, state.ref or "") or queries.find_refund(tx, state.refund_id or "")
        if known is not None:
            return known.id
        if state.status == "failed":
            return None
        _require_room(payment, state.amount_nanos)
        row = _insert(
            tx, payment, state.amount_nanos, reason=_EXTERNAL_REASON, request_key=None, external_ref=state.ref, now=now
        )
        return row.id


def list_refunds(tx: Session, organization_id: str, payment_id: str) -> list[RefundView]:
    """Return a payment's refunds, oldest first. Raises NotFound."""
    get_payment(tx, organization_id, payment_id)
    return [_view(row) for row in queries.list_refunds(tx, payment_id)]


def _lock(tx: Session, refund_id: str) -> PaymentRefund:
    row = queries.lock_refund(tx, refund_id)
    assert row is not None, f"refund {refund_id} is there and is not"
    return row


def _view(row: PaymentRefund) -> RefundView:
    return RefundView(
        id=row.id,
        payment_id=row.payment_id,
        organization_id=row.organization_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        amount_nanos=row.amount_nanos,
        reason=row.reason,
        is_external=bool(row.is_external),
        status=row.status,  # type: ignore[arg-type]  # a CHECK holds the column to these
        failure_message=row.failure_message,
    )
