"""Cards: saved by the processor, kept here without their number. One is the default, which payments are charged to.

How a card comes to be saved is for ``card_setups``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from luthier import faults, ids
from luthier.billing import limits
from luthier.billing.payments import pace, queries
from luthier.billing.payments.processor import CardDetails, Processor, ProcessorRefused, ProcessorUnreachable
from luthier.billing.payments.schemas import CardView
from luthier.billing.payments.tables import Card
from luthier.db import Database, Session
from luthier.errors import InvalidRequest, NotFound
from luthier.log import get_logger

MAX_CARDS: Final = 20
CARDS_A_ROUND: Final = 20

_log = get_logger(__name__)


def list_cards(tx: Session, organization_id: str) -> list[CardView]:
    """Return an organization's cards, oldest first."""
    return [view_card(row) for row in queries.list_cards(tx, organization_id)]


def get_card(tx: Session, organization_id: str, card_id: str) -> CardView:
    """Return a card. Raises NotFound, also for one that was removed."""
    return view_card(_get_row(tx, organization_id, card_id))


def find_default(tx: Session, organization_id: str) -> CardView | None:
    """Return the card that payments are charged to."""
    return next((card for card in list_cards(tx, organization_id) if card.is_default), None)


def set_default(tx: Session, organization_id: str, card_id: str) -> CardView:
    """Charge payments to this card from now on. Raises NotFound."""
    queries.lock_customer(tx, organization_id)
    row = _get_row(tx, organization_id, card_id)
    _make_default(tx, row)
    return view_card(row)


def remove_card(
    database: Database, processor: Processor, organization_id: str, card_id: str, *, now: datetime
) -> CardView:
    """Remove a card; the newest that is left becomes the default in its place. Raises NotFound.

    From the commit on it is not charged any more. That the processor forgets it, too, is repeated until it has.
    """
    with database.transaction() as tx:
        queries.lock_customer(tx, organization_id)
        row = _get_row(tx, organization_id, card_id)
        processor.require_ready()
        _remove(tx, row, now=now)
        view = view_card(row)
    faults.hit("cards.after_remove")
    try:
        _detach(database, processor, row, now=now)
    except ProcessorUnreachable as error:
        _log.warning("card not detached yet", card=card_id, reason=str(error))
    return view


def _detach(database: Database, processor: Processor, row: Card, *, now: datetime) -> None:
    try:
        processor.detach_card(row.ref)
    except ProcessorRefused as error:  # it does not know the card: there is nothing to forget
        _log.info("card not detached", card=row.id, reason=error.message)
    with database.transaction() as tx:
        kept = queries.find_card(tx, row.id)
        assert kept is not None, f"card {row.id} is there and is not"
        kept.detached_at = kept.detached_at or now


def refresh_card(database: Database, processor: Processor, ref: str, *, now: datetime) -> bool:
    """Read a card again that changed at the processor; return whether it is one of ours."""
    with database.read() as tx:
        if queries.find_card_by_ref(tx, ref) is None:
            return False
    details = processor.fetch_card(ref)
    with database.transaction() as tx:
        found = queries.find_card_by_ref(tx, ref)
        assert found is not None, f"card {ref} is there and is not"
        queries.lock_customer(tx, found.organization_id)
        tx.refresh(found)  # somebody may have removed it before we had the lock
        found.exp_month, found.exp_year = details.exp_month, details.exp_year
        if details.customer_ref is None and found.removed_at is None:
            _remove(tx, found, now=now)
        if details.customer_ref is None:
            found.detached_at = found.detached_at or now
    return True


def settle_removed(database: Database, processor: Processor, *, now: datetime) -> None:
    """Let the processor forget the cards that were removed here and that it may still know."""
    with database.read() as tx:
        removed = queries.list_cards_to_detach(tx, before=now - pace.CALL_LEASE, limit=CARDS_A_ROUND)
    for card in removed:
        try:
            _detach(database, processor, card, now=now)
        except ProcessorUnreachable as error:
            _log.warning("card not detached yet", card=card.id, reason=str(error))


def require_room(tx: Session, organization_id: str) -> None:
    """Raise InvalidRequest when an organization has as many cards as it may have."""
    if len(queries.list_cards(tx, organization_id)) >= MAX_CARDS:
        raise InvalidRequest(
            "too_many_cards",
            f"there are {MAX_CARDS} cards already",
            hint="remove one first: luthier billing cards remove CARD",
        )


def keep(tx: Session, organization_id: str, details: CardDetails, *, now: datetime) -> Card:
    """Keep a card that the processor has saved; the first one becomes the default, and opens the credit line."""
    queries.lock_customer(tx, organization_id)
    found = queries.find_card_by_ref(tx, details.ref)
    if found is not None:
        assert found.organization_id == organization_id, f"card {found.id} belongs to {found.organization_id}"
        return found
    is_first = not queries.list_cards(tx, organization_id)
    card = Card(
        id=ids.new_id("card"),
        organization_id=organization_id,
        created_at=now,
        ref=details.ref,
        brand=details.brand,
        last4=details.last4,
        exp_month=details.exp_month,
        exp_year=details.exp_year,
        default_key=organization_id if is_first else None,
    )
    tx.add(card)
    tx.flush()
    if is_first:
        limits.set_card_on_file(tx, organization_id, has_card=True, now=now)
    return card


def _remove(tx: Session, row: Card, *, now: datetime) -> None:
    was_default = row.default_key is not None
    row.removed_at, row.default_key = now, None
    tx.flush()
    left = queries.list_cards(tx, row.organization_id)
    if not left:
        limits.set_card_on_file(tx, row.organization_id, has_card=False, now=now)
    elif was_default:
        _make_default(tx, left[-1])


def _make_default(tx: Session, row: Card) -> None:
    for card in queries.list_cards(tx, row.organization_id):
        card.default_key = None
    tx.flush()  # the one before gives the place up first
    row.default_key = row.organization_id
    tx.flush()


def _get_row(tx: Session, organization_id: str, card_id: str) -> Card:
    row = queries.find_card(tx, card_id)
    if row is None or row.organization_id != organization_id or row.removed_at is not None:
        raise NotFound(
            "card_not_found",
            f"the organization has no card with this id: {card_id}",
            hint="list them: luthier billing cards list",
        )
    return row


def view_card(row: Card) -> CardView:
    """Return a card as callers see it."""
    return CardView(
        id=row.id,
        organization_id=row.organization_id,
        created_at=row.created_at,
        brand=row.brand,
        last4=row.last4,
        exp_month=row.exp_month,
        exp_year=row.exp_year,
        is_default=row.default_key is not None,
        removed_at=row.removed_at,
    )
