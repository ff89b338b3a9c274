"""Disputes: while one stands, the balance is without its amount, below zero if need be; a won one gives it back.

Whoever contests a payment is not charged by itself for what that leaves missing: automatic recharging is switched off.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from luthier.billing import ledger
from luthier.billing.ledger import Cause
from luthier.billing.money import format_money
from luthier.billing.payments import queries, recharge
from luthier.billing.payments.processor import DisputeState, Processor, ProcessorUnreachable
from luthier.billing.payments.schemas import DisputeView
from luthier.billing.payments.tables import Dispute, Payment
from luthier.db import Database, Session

MAX_FETCHES: Final = 5

_Version = tuple[str, int]  # status and moves


def refresh(database: Database, processor: Processor, payment_id: str, ref: str, *, now: datetime) -> DisputeView:
    """Bring the dispute of a payment that succeeded to what the processor says; the same again changes nothing.

    What was fetched while somebody else recorded may be older news than theirs: it is fetched again then.
    """
    for _ in range(MAX_FETCHES):
        with database.read() as tx:
            before = _find_version(tx, ref)
        state = processor.fetch_dispute(ref)
        view = _record(database, payment_id, state, before=before, now=now)
        if view is not None:
            return view
    raise ProcessorUnreachable(f"dispute {ref} changes too often")


def _find_version(tx: Session, ref: str) -> _Version | None:
    row = queries.find_dispute(tx, ref)
    return None if row is None else (row.status, row.moves)


def _record(
    database: Database, payment_id: str, state: DisputeState, *, before: _Version | None, now: datetime
) -> DisputeView | None:
    """Keep how a dispute stands; None when it is no longer as it was ``before``."""
    with database.transaction() as tx:
        payment = queries.lock_payment(tx, payment_id)
        assert payment is not None, f"payment {payment_id} is there and is not"
        if _find_version(tx, state.ref) != before:
            return None
        row = queries.find_dispute(tx, state.ref)
        if row is None:
            row = _make(payment, state, now)
            tx.add(row)
        if row.status != state.status:
            row.status, row.updated_at = state.status, now
        tx.flush()
        if state.takes_money and not row.taken_nanos:
            _take(tx, payment, row, now=now)
        elif not state.takes_money and row.taken_nanos:
            _give_back(tx, payment, row, now=now)
        tx.flush()
        return _view(row)


def _make(payment: Payment, state: DisputeState, now: datetime) -> Dispute:
    return Dispute(
        id=state.ref,
        payment_id=payment.id,
        organization_id=payment.organization_id,
        created_at=now,
        updated_at=now,
        amount_nanos=state.amount_nanos,
        status=state.status,
        reason=state.reason,
        taken_nanos=0,
        moves=0,
    )


def _take(tx: Session, payment: Payment, row: Dispute, *, now: datetime) -> None:
    row.taken_nanos, row.moves = row.amount_nanos, row.moves + 1
    payment.disputed_nanos += row.taken_nanos
    payment.updated_at = now
    recharge.give_up(tx, row.organization_id, "the card's owner disputes a payment")
    ledger.withdraw(
        tx,
        row.organization_id,
        row.taken_nanos,
        key=f"dispute:{row.id}:{row.moves}",
        cause=Cause("payment", payment.id),
        note=f"Took {format_money(row.taken_nanos, payment.currency)}: "
        f"the card's owner disputes the payment ({row.reason.replace('_', ' ')})",
        now=now,
    )


def _give_back(tx: Session, payment: Payment, row: Dispute, *, now: datetime) -> None:
    nanos = row.taken_nanos
    row.taken_nanos, row.moves = 0, row.moves + 1
    payment.disputed_nanos -= nanos
    payment.updated_at = now
    ledger.deposit(
        tx,
        row.organization_id,
        nanos,
        key=f"dispute:{row.id}:{row.moves}",
        cause=Cause("payment", payment.id),
        note=f"Gave {format_money(nanos, payment.currency)} back: the dispute ended as {row.status.replace('_', ' ')}",
        now=now,
    )


def list_disputes(tx: Session, organization_id: str) -> list[DisputeView]:
    """Return an organization's disputes, newest first."""
    return [_view(row) for row in queries.list_disputes(tx, organization_id)]


def _view(row: Dispute) -> DisputeView:
    return DisputeView(**{name: getattr(row, name) for name in DisputeView.__dataclass_fields__})
