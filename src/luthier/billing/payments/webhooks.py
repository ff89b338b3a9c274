"""Webhooks: each says that something may have changed. What, is fetched: order, repeats and forged bodies do not matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final, Literal

from luthier import faults
from luthier.billing.payments import card_setups, cards, charges, disputes, queries, refunds
from luthier.billing.payments.processor import (
    ForgedWebhook,
    Notification,
    PaymentState,
    Processor,
    ProcessorRefused,
    ProcessorUnreachable,
    Subject,
)
from luthier.db import Database
from luthier.errors import InvalidRequest, Unavailable
from luthier.log import get_logger

Outcome = Literal["applied", "known", "ignored"]

KEPT: Final = timedelta(days=30)  # so long the processor lets people send an event again

_log = get_logger(__name__)


def receive(database: Database, processor: Processor, body: bytes, signature: str | None, *, now: datetime) -> Outcome:
    """Deal with a webhook: ``applied``, ``known`` from before, or ``ignored`` because it is not about ours.

    Raises InvalidRequest for one that the processor did not send, Unavailable when it could not be applied and is to
    be sent again.
    """
    try:
        event = processor.parse_webhook(body, signature)
    except ForgedWebhook as error:
        _log.warning("webhook refused", reason=str(error))
        raise InvalidRequest(
            "invalid_signature",
            "the webhook does not carry a signature of the payment processor's, or is older than five minutes",
            hint="check LUTHIER_STRIPE_WEBHOOK_SECRET, that nothing changes the body on its way, and this server's clock",
        ) from None
    with database.transaction() as tx:
        queries.ensure_event(tx, event.id, type=event.type, now=now)
        kept = queries.find_event(tx, event.id)
    if kept is not None and kept.applied_at is not None:
        return "known"
    faults.hit("webhooks.after_intent")
    try:
        is_ours = _apply(database, processor, event, now=now)
    except ProcessorUnreachable as error:
        _log.warning("webhook not applied", event_id=event.id, type=event.type, reason=str(error))
        raise Unavailable(
            "webhook_not_applied", "the webhook could not be applied now", hint="send it again", retry_after_s=60
        ) from None
    faults.hit("webhooks.before_record")
    with database.transaction() as tx:
        queries.mark_event_applied(tx, event.id, now=now)
    return "applied" if is_ours else "ignored"


def _apply(database: Database, processor: Processor, event: Notification, *, now: datetime) -> bool:
    """Fetch what an event is about and record how it stands; return whether it is ours."""
    apply = _APPLY.get(event.subject)
    if apply is None:
        return False
    try:
        return apply(database, processor, event.ref, now=now)
    except ProcessorRefused as error:  # what the processor does not know under our key is not ours
        _log.info("webhook about nothing that the processor knows", event_id=event.id, reason=error.message)
        return False


def _apply_payment(database: Database, processor: Processor, ref: str, *, now: datetime) -> bool:
    return _refresh_payment(database, processor, ref, now=now) is not None


def _refresh_payment(database: Database, processor: Processor, ref: str, *, now: datetime) -> str | None:
    """Record how a payment and its refunds stand; return our id of it, None for one that is not ours."""
    state = processor.fetch_payment(ref)
    payment_id = _find_payment_id(database, state)
    if payment_id is None:
        return None
    view = charges.record(database, payment_id, state, now=now)
    if view.status == "succeeded":
        refunds.sync(database, processor, payment_id, ref, now=now)
    return payment_id


def _find_payment_id(database: Database, state: PaymentState) -> str | None:
    """Return our id of a payment: by the reference that we know, or as it was told to the processor."""
    with database.read() as tx:
        known = queries.find_payment_by_ref(tx, state.ref or "")
        if known is not None:
            return known.id
        found = queries.find_payment(tx, state.payment_id or "")
        # One that is known by another reference was copied there by hand: it is not ours.
        return found[0].id if found is not None and found[0].ref is None else None


def _apply_refund(database: Database, processor: Processor, ref: str, *, now: datetime) -> bool:
    payment_ref = processor.fetch_refund(ref).payment_ref
    return payment_ref is not None and _apply_payment(database, processor, payment_ref, now=now)


def _apply_dispute(database: Database, processor: Processor, ref: str, *, now: datetime) -> bool:
    payment_ref = processor.fetch_dispute(ref).payment_ref
    if payment_ref is None:
        return False
    payment_id = _refresh_payment(database, processor, payment_ref, now=now)  # it may be news, too
    if payment_id is None:
        return False
    disputes.refresh(database, processor, payment_id, ref, now=now)
    return True


def _apply_setup(database: Database, processor: Processor, ref: str, *, now: datetime) -> bool:
    state = processor.fetch_card_setup(ref)
    with database.read() as tx:
        is_ours = state.setup_id is not None and queries.find_setup(tx, state.setup_id) is not None
    if is_ours and state.setup_id is not None:
        card_setups.record(database, state.setup_id, state, now=now)
    return is_ours


_APPLY: Final[Mapping[Subject, Callable[..., bool]]] = {
    "payment": _apply_payment,
    "refund": _apply_refund,
    "dispute": _apply_dispute,
    "setup": _apply_setup,
    "card": cards.refresh_card,
}


def forget_old(database: Database, *, now: datetime) -> int:
    """Forget webhooks that nobody sends again; return how many."""
    with database.transaction() as tx:
        return queries.delete_events_before(tx, now - KEPT)
