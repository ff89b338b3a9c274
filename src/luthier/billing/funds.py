"""Whether money may be spent: the balance, the credit line and the monthly limits, judged together.

Holds are made here, under the lock of the organization's accounts: whoever asks at the same time waits, and finds
what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from luthier.billing import ledger, limits
from luthier.billing import limit_queries as queries
from luthier.billing.ledger import EntryView, Purchase
from luthier.billing.limits import AlertView, LimitView, Scope
from luthier.billing.policy import Policy
from luthier.db import Session
from luthier.errors import PaymentRequired

_NAMES: dict[Scope, str] = {"organization": "the organization", "project": "the project", "key": "the API key"}


@dataclass(frozen=True)
class Room:
    """What may be spent now: the available balance, the usable credit line, and the limits with what is used of them."""

    available_nanos: int
    credit_limit_nanos: int
    limits: tuple[LimitView, ...]

    @property
    def spendable_nanos(self) -> int:
        """What may still be held, not below zero."""
        funds = self.available_nanos + self.credit_limit_nanos
        return max(0, min([funds, *(limit.left_nanos for limit in self.limits)]))


@dataclass(frozen=True)
class Held:
    """A hold that was made, and the alerts that it set off."""

    entry: EntryView
    alerts: list[AlertView]


@dataclass(frozen=True)
class Excess:
    """That more is held than may be spent: of a limit, or (``limit`` is None) of the balance with its credit line."""

    organization_id: str
    nanos: int
    scope: Scope
    scope_id: str
    limit: LimitView | None
    room: Room


def get_room(
    tx: Session, *, organization_id: str, project_id: str, api_key_id: str, policy: Policy, now: datetime
) -> Room:
    """Return what a key may spend now."""
    balance = ledger.get_balance(tx, organization_id)
    applicable = limits.list_applicable(
        tx, organization_id=organization_id, project_id=project_id, api_key_id=api_key_id, now=now
    )
    return Room(balance.available_nanos, get_usable_credit(tx, organization_id, policy=policy), tuple(applicable))


def get_usable_credit(tx: Session, organization_id: str, *, policy: Policy) -> int:
    """Return how far below zero the balance may go now.

    The credit line counts once a card is on file; where payments are manual there are no cards, and the operator's
    word is enough.
    """
    line = limits.get_credit_line(tx, organization_id)
    return line.limit_nanos if line.has_card or policy.processor == "manual" else 0


def require_minimum(tx: Session, organization_id: str, *, policy: Policy) -> None:
    """Raise PaymentRequired when the available balance is below what an upload or a job needs to begin with."""
    if not policy.enabled:
        return
    available = ledger.get_balance(tx, organization_id).available_nanos
    funds = available + get_usable_credit(tx, organization_id, policy=policy)
    if funds >= policy.minimum_nanos:
        return
    missing = policy.minimum_nanos - funds
    raise PaymentRequired(
        "insufficient_balance",
        f"the available balance is {policy.format(available)}; uploads and jobs need at least "
        f"{policy.format(policy.minimum_nanos)}: {policy.format(missing)} is missing",
        hint=policy.list_ways_out(),
    )


def hold(tx: Session, purchase: Purchase, *, policy: Policy, now: datetime) -> Held:
    """Set a job's price aside. Raises PaymentRequired, with the numbers and the ways out, when it may not be spent."""
    ledger.lock(tx, purchase.organization_id, now=now)
    room = get_room(
        tx,
        organization_id=purchase.organization_id,
        project_id=purchase.project_id,
        api_key_id=purchase.api_key_id,
        policy=policy,
        now=now,
    )
    if policy.enabled and purchase.price_nanos and ledger.find_hold(tx, purchase.job_id) is None:
        _require_limits(room, purchase.price_nanos, policy)
    overdraft_nanos = room.credit_limit_nanos if policy.enabled else None
    try:
        entry = ledger.hold(tx, purchase, overdraft_nanos=overdraft_nanos, now=now)
    except ledger.Overdrawn:
        raise _describe_shortage(room, purchase.price_nanos, policy) from None
    after = limits.list_applicable(
        tx,
        organization_id=purchase.organization_id,
        project_id=purchase.project_id,
        api_key_id=purchase.api_key_id,
        now=now,
    )
    return Held(entry, limits.note_alerts(tx, after, organization_id=purchase.organization_id, now=now))


def _require_limits(room: Room, price_nanos: int, policy: Policy) -> None:
    for limit in room.limits:
        if price_nanos > limit.left_nanos:
            raise PaymentRequired(
                "spending_limit_reached",
                f"the price is {policy.format(price_nanos)}, and of the monthly limit of {describe_scope(limit)}, "
                f"{policy.format(limit.monthly_nanos)}, {policy.format(max(limit.left_nanos, 0))} is left",
                hint="adjust the limit: luthier billing limits set; wait for the next month; or make the job smaller",
            )


def _describe_shortage(room: Room, price_nanos: int, policy: Policy) -> PaymentRequired:
    funds = room.available_nanos + room.credit_limit_nanos
    line = f" and a credit limit of {policy.format(room.credit_limit_nanos)}" if room.credit_limit_nanos else ""
    return PaymentRequired(
        "insufficient_balance",
        f"the price is {policy.format(price_nanos)}; there is an available balance of "
        f"{policy.format(room.available_nanos)}{line}: {policy.format(price_nanos - funds)} is missing",
        hint=policy.list_ways_out(),
    )


def describe_scope(limit: LimitView) -> str:
    """Say whose limit it is."""
    return _NAMES[limit.scope] if limit.scope == "organization" else f"{_NAMES[limit.scope]} {limit.scope_id}"


def find_excesses(tx: Session, organization_id: str, *, policy: Policy, now: datetime) -> list[Excess]:
    """Return by how much more is held than may be spent, for the balance and for each limit of an organization."""
    balance = ledger.get_balance(tx, organization_id)
    all_limits = limits.list_limits(tx, organization_id, now=now)
    credit = get_usable_credit(tx, organization_id, policy=policy)
    room = Room(balance.available_nanos, credit, tuple(all_limits))
    short = -(room.available_nanos + room.credit_limit_nanos)
    found = [Excess(organization_id, short, "organization", organization_id, None, room)] if short > 0 else []
    found += [
        Excess(organization_id, -limit.left_nanos, limit.scope, limit.scope_id, limit, room)
        for limit in all_limits
        if limit.left_nanos < 0 and limit.held_nanos
    ]
    return found


def list_payers_with_open_holds(tx: Session) -> list[str]:
    """Return the organizations for which anything is held."""
    return list(queries.list_payers_with_open_holds(tx))


def pick_newest(tx: Session, organization_id: str, excess: Excess) -> list[str]:
    """Return the jobs to end, the newest first, so that what is held for them covers an excess."""
    picked, covered = [], 0
    for hold in queries.list_open_holds(tx, organization_id):
        owner = {"organization": hold.organization_id, "project": hold.project_id, "key": hold.api_key_id}
        if covered >= excess.nanos:
            break
        if owner[excess.scope] == excess.scope_id and hold.amount_nanos:
            picked.append(hold.job_id)
            covered += hold.amount_nanos
    return picked
