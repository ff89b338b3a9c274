"""Saving a card: on a page of ours (with a client secret), on the processor's, or by a token that the processor knows.

Its owner may have to confirm it; what came of it is told by a webhook, and asked for now and then.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from typing import Final

from luthier import faults, ids
from luthier.billing.payments import cards, pace, queries
from luthier.billing.payments.customers import ensure_customer
from luthier.billing.payments.processor import (
    Failure,
    Processor,
    ProcessorRefused,
    ProcessorUnreachable,
    SetupKind,
    SetupOrder,
    SetupState,
)
from luthier.billing.payments.refusals import refuse_declined_setup, refuse_unreachable
from luthier.billing.payments.schemas import CardSetupView
from luthier.billing.payments.tables import CardSetup
from luthier.db import Database, Session
from luthier.errors import InvalidRequest, NotFound
from luthier.log import get_logger

SETUPS_A_ROUND: Final = 20
_TOKEN = re.compile(r"pm_[A-Za-z0-9_]{1,250}", re.ASCII)
_OPEN = frozenset({"created", "open", "needs_action"})
_REMOVED = Failure("card_removed", "this card was removed; add another")
_NOT_A_CARD = Failure("not_a_card", "only cards can be saved; add one")

_log = get_logger(__name__)


def begin_setup(
    database: Database,
    processor: Processor,
    organization_id: str,
    *,
    is_hosted: bool,
    return_url: str,
    now: datetime,
) -> CardSetupView:
    """Begin to save a card that its owner will type: on the processor's page, or on one of ours.

    The view has ``action_url`` for the former, ``client_secret`` for the latter. Raises Unavailable when the processor
    cannot be reached.
    """
    kind: SetupKind = "hosted" if is_hosted else "page"
    return _start(database, processor, organization_id, kind=kind, token=None, return_url=return_url, now=now)


def add_card(
    database: Database, processor: Processor, organization_id: str, *, token: str, return_url: str, now: datetime
) -> CardSetupView:
    """Save a card that the processor knows by a token (``pm_card_visa`` is Stripe's test card).

    The view has the card, or ``action_url`` where its owner confirms it. Raises PaymentRequired when the card is
    declined, Unavailable when the processor cannot be reached.
    """
    if not _TOKEN.fullmatch(token):
        raise InvalidRequest(
            "invalid_payment_method",
            "this is not the token of a payment method",  # and may be a card's number: it is told nowhere
            hint="give the processor's token, pm_…; a card's number is typed on the processor's page only: luthier billing cards add",
            param="payment_method",
        )
    view = _start(database, processor, organization_id, kind="token", token=token, return_url=return_url, now=now)
    if view.status == "failed":
        raise refuse_declined_setup(view)
    return view


def check_setup(
    database: Database, processor: Processor, organization_id: str, setup_id: str, *, now: datetime
) -> CardSetupView:
    """Ask the processor how the saving of a card stands, unless that is settled. Raises NotFound, Unavailable."""
    with database.read() as tx:
        view = get_setup(tx, organization_id, setup_id)
        row = queries.find_setup(tx, setup_id)
    if row is None or row.ref is None or row.status not in _OPEN:
        return view
    try:
        state = processor.fetch_card_setup(row.ref)
    except ProcessorUnreachable as error:
        raise refuse_unreachable(error) from None
    return record(database, setup_id, state, now=now)


def get_setup(tx: Session, organization_id: str, setup_id: str) -> CardSetupView:
    """Return the saving of a card, as it was last told. Raises NotFound."""
    row = queries.find_setup(tx, setup_id)
    if row is None or row.organization_id != organization_id:
        raise NotFound(
            "card_setup_not_found",
            f"the organization has no card being saved with this id: {setup_id}",
            hint="begin again: luthier billing cards add",
        )
    return _view_setup(tx, row)


def settle(database: Database, processor: Processor, *, now: datetime) -> None:
    """Ask the processor how cards stand that are on their way."""
    with database.transaction() as tx:
        due = queries.claim_due(tx, CardSetup, now=now, limit=SETUPS_A_ROUND)
        for row in due:
            row.looks += 1
            row.next_look_at = pace.plan_look(row.looks, now)
    for row in due:
        try:
            record(database, row.id, _ask(processor, row, now), now=now)
        except ProcessorUnreachable as error:
            _log.warning("card setup not settled yet", setup=row.id, reason=str(error))


def _ask(processor: Processor, row: CardSetup, now: datetime) -> SetupState:
    """Return how the saving of a card stands. One that nobody finished in a day is over."""
    is_over = now - row.created_at > pace.ACTION_WITHIN
    over = SetupState(row.ref, row.id, "canceled", failure=Failure("expired", "nobody finished it within a day"))
    if row.ref is None:
        if row.token is None or is_over:  # whoever began it has no secret or page to go on with
            return over
        return _call(processor, _order(row))
    try:
        state = processor.fetch_card_setup(row.ref)
    except ProcessorRefused as error:
        return SetupState(row.ref, row.id, "canceled", failure=Failure(error.code, error.message))
    return over if is_over and state.status not in {"succeeded", "failed"} else state


def _start(
    database: Database,
    processor: Processor,
    organization_id: str,
    *,
    kind: SetupKind,
    token: str | None,
    return_url: str,
    now: datetime,
) -> CardSetupView:
    processor.require_ready()
    try:
        customer_ref = ensure_customer(database, processor, organization_id, now=now)
    except ProcessorUnreachable as error:
        raise refuse_unreachable(error) from None
    row = CardSetup(
        id=ids.new_id("cardsetup"),
        organization_id=organization_id,
        created_at=now,
        customer_ref=customer_ref,
        kind=kind,
        token=token,
        return_url=return_url,
        status="created",
        looks=0,
        next_look_at=now + pace.CALL_LEASE,
    )
    with database.transaction() as tx:
        cards.require_room(tx, organization_id)
        tx.add(row)
    faults.hit("cards.after_intent")
    try:
        state = _call(processor, _order(row))
    except ProcessorUnreachable as error:
        raise refuse_unreachable(error) from None
    faults.hit("cards.before_record")
    view = record(database, row.id, state, now=now)
    faults.hit("cards.after_record")
    return replace(view, client_secret=state.client_secret) if kind == "page" else view


def _call(processor: Processor, order: SetupOrder) -> SetupState:
    try:
        return processor.start_card_setup(order)
    except ProcessorRefused as error:
        return SetupState(None, order.setup_id, "failed", failure=Failure(error.code, error.message))


def record(database: Database, setup_id: str, state: SetupState, *, now: datetime) -> CardSetupView:
    """Keep what the processor says of the saving of a card; the same again changes nothing."""
    with database.transaction() as tx:
        row = queries.lock_setup(tx, setup_id)
        assert row is not None, f"card setup {setup_id} is there and is not"
        if row.status != "succeeded":  # a card that is saved stays saved, whatever is told later
            _apply(tx, row, state, now=now)
            tx.flush()
        return _view_setup(tx, row)


def _apply(tx: Session, row: CardSetup, state: SetupState, *, now: datetime) -> None:
    row.ref = row.ref or state.ref
    row.action_url = state.action_url
    status, failure = state.status, state.failure
    if status == "failed" and row.kind != "token":
        status = "open"  # its owner is at the page, and may try another card there
    if status == "succeeded" and state.card is None:
        status, failure = "failed", _NOT_A_CARD
    elif status == "succeeded" and state.card is not None:
        card = cards.keep(tx, row.organization_id, state.card, now=now)
        if card.removed_at is None:
            row.card_id = card.id
        else:
            status, failure = "failed", _REMOVED
    row.status = status
    if failure is not None:
        row.failure_code, row.failure_message = failure.code, failure.message
    if status not in _OPEN:
        row.next_look_at = row.action_url = None
    elif not row.looks:  # the call is over: no need to wait for the end of its lease
        row.next_look_at = pace.plan_look(0, now)


def _order(row: CardSetup) -> SetupOrder:
    return SetupOrder(
        setup_id=row.id,
        organization_id=row.organization_id,
        customer_ref=row.customer_ref,
        kind=row.kind,  # type: ignore[arg-type]  # a CHECK holds the column to these
        token=row.token,
        return_url=row.return_url,
    )


def _view_setup(tx: Session, row: CardSetup) -> CardSetupView:
    card = queries.find_card(tx, row.card_id) if row.card_id else None
    return CardSetupView(
        id=row.id,
        organization_id=row.organization_id,
        created_at=row.created_at,
        kind=row.kind,  # type: ignore[arg-type]  # a CHECK holds the column to these
        status=row.status,  # type: ignore[arg-type]  # a CHECK holds the column to these
        action_url=row.action_url,
        failure_code=row.failure_code,
        failure_message=row.failure_message,
        card=None if card is None else cards.view_card(card),
    )
