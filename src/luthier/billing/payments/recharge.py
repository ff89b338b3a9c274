"""Automatic recharging: when the available balance falls below a threshold, the card is charged up to a target.

One charge at a time, whoever looks: the row of what was set is locked, and the payment carries the organization's id
in a unique column while it is under way. After three failures in a row it is switched off.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from luthier.billing import ledger
from luthier.billing.money import format_money
from luthier.billing.payments import amounts, cards, charges, queries
from luthier.billing.payments.processor import ChargeOrder, Processor
from luthier.billing.payments.schemas import AutoRechargeView
from luthier.billing.payments.tables import AutoRecharge, Payment
from luthier.billing.policy import Policy
from luthier.db import Database, Session
from luthier.errors import Conflict, InvalidRequest
from luthier.log import get_logger

MAX_FAILURES: Final = 3
PAUSES_S: Final = (60.0, 600.0)  # after the first and the second failure in a row

_log = get_logger(__name__)


def configure(
    tx: Session,
    processor: Processor,
    organization_id: str,
    *,
    threshold_nanos: int,
    target_nanos: int,
    policy: Policy,
    now: datetime,
) -> AutoRechargeView:
    """Switch it on, or change it; failures are forgotten. Raises InvalidRequest for the amounts, Conflict without a card."""
    processor.require_ready()
    threshold = amounts.require_cents(threshold_nanos, policy.currency, param="threshold")
    target = amounts.require_chargeable(target_nanos, policy.currency, param="target")
    if target <= threshold:
        raise InvalidRequest(
            "invalid_amount",
            f"target is not more than threshold: {policy.format(target)}, {policy.format(threshold)}",
            hint="the card is charged from below the threshold up to the target: give a higher target",
            param="target",
        )
    if cards.find_default(tx, organization_id) is None:
        raise Conflict(
            "no_card", "the organization has no card to charge", hint="add one first: luthier billing cards add"
        )
    values: dict[str, object] = {
        "is_enabled": 1,
        "threshold_nanos": threshold,
        "target_nanos": target,
        "configured_at": now,
        "notice": None,
    }
    queries.upsert_recharge(tx, organization_id, values)
    return _get(tx, organization_id)


def switch_off(tx: Session, organization_id: str) -> AutoRechargeView | None:
    """Switch it off; a charge that is under way is still made. None where it never was on."""
    row = queries.lock_recharge(tx, organization_id)
    if row is None:
        return None
    row.is_enabled, row.notice = 0, None
    tx.flush()
    return _get(tx, organization_id)


def give_up(tx: Session, organization_id: str, reason: str) -> None:
    """Switch it off, where it is on, for a reason that its owner is told."""
    row = queries.lock_recharge(tx, organization_id)
    if row is not None and row.is_enabled:
        _give_up(row, f"it was switched off: {reason}")


def find(tx: Session, organization_id: str) -> AutoRechargeView | None:
    """Return how an organization is recharged; None where it never was."""
    row = queries.find_recharge(tx, organization_id)
    return None if row is None else _view(tx, row)


def _get(tx: Session, organization_id: str) -> AutoRechargeView:
    view = find(tx, organization_id)
    assert view is not None, f"the recharging of {organization_id} is there and is not"
    return view


def run_due(database: Database, processor: Processor, *, policy: Policy, now: datetime) -> int:
    """Recharge every organization whose available balance is below its threshold; return how many were charged.

    Any number of processes may do this at once: each organization is charged once.
    """
    if policy.processor == "manual" or not policy.enabled:
        return 0
    with database.read() as tx:
        below = [row.organization_id for row in queries.list_recharged(tx) if _is_below(tx, row)]
    charged = 0
    for organization_id in below:
        with database.transaction() as tx:
            order = _begin(tx, organization_id, policy=policy, now=now)
        if order is not None:
            view = charges.execute(database, processor, order, point="recharge", now=now)
            _log.info("recharged", organization=organization_id, payment=view.id, status=view.status)
            charged += view.status == "succeeded"
    return charged


def _is_below(tx: Session, row: AutoRecharge) -> bool:
    return ledger.get_balance(tx, row.organization_id).available_nanos < row.threshold_nanos


def _begin(tx: Session, organization_id: str, *, policy: Policy, now: datetime) -> ChargeOrder | None:
    """Begin a payment of what is missing to the target; None where none is due, or one is under way."""
    row = queries.lock_recharge(tx, organization_id)
    if row is None or not row.is_enabled or queries.find_open_automatic(tx, organization_id) is not None:
        return None
    if not _is_below(tx, row):
        return None
    failures = _list_failures(tx, row)
    card = cards.find_default(tx, organization_id)
    if len(failures) >= MAX_FAILURES:
        _give_up(row, f"it was switched off after {len(failures)} failures in a row; {_tell(failures[0])}")
        return None
    if card is None:
        _give_up(row, "it was switched off: the organization has no card to charge")
        return None
    if failures and timedelta(0) <= now - failures[0].updated_at < timedelta(seconds=PAUSES_S[len(failures) - 1]):
        return None
    missing = row.target_nanos - ledger.get_balance(tx, organization_id).available_nanos
    kept = queries.find_card(tx, card.id)
    assert kept is not None, f"card {card.id} is there and is not"
    return charges.begin(
        tx,
        kept,
        amounts.round_up_to_charge(missing),
        currency=policy.currency,
        return_url=None,
        request_key=None,
        is_automatic=True,
        now=now,
    )


def _give_up(row: AutoRecharge, notice: str) -> None:
    row.is_enabled, row.notice = 0, notice
    _log.warning("automatic recharging switched off", organization=row.organization_id, reason=notice)


def _list_failures(tx: Session, row: AutoRecharge) -> list[Payment]:
    """Return the automatic payments that failed in a row, the last one first."""
    failures = []
    for payment in queries.list_automatic(tx, row.organization_id, since=row.configured_at, limit=MAX_FAILURES):
        if payment.status not in {"failed", "canceled"}:
            break
        failures.append(payment)
    return failures


def _tell(payment: Payment) -> str:
    return f"the last: {format_money(payment.amount_nanos, payment.currency)}, {payment.failure_message}"


def _view(tx: Session, row: AutoRecharge) -> AutoRechargeView:
    failures = _list_failures(tx, row)
    notice = row.notice
    if row.is_enabled and failures:
        notice = f"it failed {len(failures)} of {MAX_FAILURES} times in a row; {_tell(failures[0])}"
    return AutoRechargeView(
        organization_id=row.organization_id,
        is_enabled=bool(row.is_enabled),
        threshold_nanos=row.threshold_nanos,
        target_nanos=row.target_nanos,
        failures=len(failures),
        notice=notice,
    )
