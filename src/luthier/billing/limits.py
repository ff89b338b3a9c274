"""Monthly spending limits of organizations, projects and keys; the credit line; alerts when a limit comes near.

A month is a calendar month in UTC. What counts is what was charged in it, net of refunds, and what is held now.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from luthier.billing import limit_queries as queries
from luthier.billing.money import MAX_NANOS
from luthier.billing.months import get_month
from luthier.billing.tables import SpendingLimit
from luthier.db import Session
from luthier.errors import InvalidRequest

Scope = Literal["organization", "project", "key"]
SCOPES: Final[tuple[Scope, ...]] = ("organization", "project", "key")
ALERT_PERCENTS: Final = (50, 80, 100)


@dataclass(frozen=True)
class LimitView:
    """A limit and what is used of it this month: charged, net of refunds, and held."""

    scope: Scope
    scope_id: str
    monthly_nanos: int
    used_nanos: int
    held_nanos: int
    period: str  # YYYY-MM

    @property
    def left_nanos(self) -> int:
        """What may still be spent; below zero when the limit was lowered."""
        return self.monthly_nanos - self.used_nanos


@dataclass(frozen=True)
class AlertView:
    """That spending reached ``percent`` of a limit in a month."""

    scope: Scope
    scope_id: str
    period: str
    percent: int
    limit_nanos: int
    used_nanos: int
    created_at: datetime


@dataclass(frozen=True)
class CreditLineView:
    """How far below zero the balance may go, where it counts: see ``funds.get_usable_credit``."""

    limit_nanos: int
    has_card: bool


def list_limits(tx: Session, organization_id: str, *, now: datetime) -> list[LimitView]:
    """Return the limits of an organization, of its projects and of its keys, each with what is used of it."""
    return [_view(tx, row, now) for row in queries.list_limits(tx, organization_id)]


def list_applicable(
    tx: Session, *, organization_id: str, project_id: str, api_key_id: str, now: datetime
) -> list[LimitView]:
    """Return the limits that a spending of this key is under."""
    scopes: list[tuple[Scope, str]] = [
        ("organization", organization_id),
        ("project", project_id),
        ("key", api_key_id),
    ]
    return [_view(tx, row, now) for row in queries.list_limits_of(tx, scopes)]


def set_limit(
    tx: Session, organization_id: str, scope: Scope, scope_id: str, monthly_nanos: int, *, now: datetime
) -> LimitView:
    """Limit what may be spent a month; zero allows nothing. The caller has made sure that the scope is its own.

    A limit below what is used already ends the newest jobs, after a warning and a grace.
    """
    _require_limit(monthly_nanos)
    row = queries.find_limit(tx, scope, scope_id)
    if row is None:
        row = SpendingLimit(scope=scope, scope_id=scope_id, organization_id=organization_id)
        tx.add(row)
    row.monthly_nanos = monthly_nanos
    row.updated_at = now
    queries.delete_alerts(tx, scope, scope_id, period=get_month(now).period)  # they are told again for the new limit
    tx.flush()
    view = _view(tx, row, now)
    note_alerts(tx, [view], organization_id=organization_id, now=now)
    return view


def remove_limit(tx: Session, scope: Scope, scope_id: str) -> None:
    """Take a limit away; nothing happens when there is none."""
    queries.delete_limit(tx, scope, scope_id)


def note_alerts(tx: Session, limits: list[LimitView], *, organization_id: str, now: datetime) -> list[AlertView]:
    """Keep, once a month each, that a share of a limit is reached; return those that are new."""
    new = []
    for limit in limits:
        for percent in ALERT_PERCENTS:
            if limit.used_nanos * 100 < limit.monthly_nanos * percent or not limit.used_nanos:
                continue
            alert = AlertView(
                limit.scope, limit.scope_id, limit.period, percent, limit.monthly_nanos, limit.used_nanos, now
            )
            if queries.insert_alert(tx, {**vars(alert), "organization_id": organization_id}):
                new.append(alert)
    return new


def note_all_alerts(tx: Session, *, now: datetime) -> None:
    """Keep what no hold has told: a new month that begins with what is held, a limit that a refused job did not fit."""
    for organization_id in queries.list_organizations_with_limits(tx):
        found = list_limits(tx, organization_id, now=now)
        note_alerts(tx, found, organization_id=organization_id, now=now)


def list_alerts(tx: Session, organization_id: str) -> list[AlertView]:
    """Return an organization's alerts, newest first."""
    names = AlertView.__dataclass_fields__
    return [
        AlertView(**{name: getattr(row, name) for name in names}) for row in queries.list_alerts(tx, organization_id)
    ]


def get_credit_line(tx: Session, organization_id: str) -> CreditLineView:
    """Return how far below zero an organization may go; nothing when nobody said otherwise."""
    row = queries.find_credit_line(tx, organization_id)
    return CreditLineView(0, has_card=False) if row is None else CreditLineView(row.limit_nanos, bool(row.has_card))


def set_credit_limit(tx: Session, organization_id: str, nanos: int, *, now: datetime) -> CreditLineView:
    """Let an organization's balance go so far below zero, once it has a card on file. The operator's decision."""
    _require_limit(nanos)
    queries.upsert_credit_line(tx, organization_id, now=now, limit_nanos=nanos)
    return get_credit_line(tx, organization_id)


def set_card_on_file(tx: Session, organization_id: str, *, has_card: bool, now: datetime) -> None:
    """Note whether an organization has a card that can be charged."""
    queries.upsert_credit_line(tx, organization_id, now=now, has_card=int(has_card))


def _require_limit(nanos: int) -> None:
    if not 0 <= nanos <= MAX_NANOS:
        raise InvalidRequest("invalid_amount", f"not a limit: {nanos} nano-dollars", hint="give an amount from zero on")


def _view(tx: Session, row: SpendingLimit, now: datetime) -> LimitView:
    scope: Scope = row.scope  # type: ignore[assignment]  # a CHECK holds the column to these
    month = get_month(now)
    charged, held = queries.sum_used(tx, scope, row.scope_id, since=month.start, until=month.end)
    return LimitView(scope, row.scope_id, row.monthly_nanos, charged + held, held, month.period)
