"""Every statement on the tables of limits, alerts and credit lines, named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from luthier.billing.tables import CreditLine, Hold, LimitAlert, SpendingLimit
from luthier.db import Session, upsert

_PAID_BY = {"organization": Hold.organization_id, "project": Hold.project_id, "key": Hold.api_key_id}


def list_limits(tx: Session, organization_id: str) -> Sequence[SpendingLimit]:
    """Read an organization's limits: its own, its projects' and its keys'."""
    statement = sa.select(SpendingLimit).where(SpendingLimit.organization_id == organization_id)
    order = sa.case((SpendingLimit.scope == "organization", 0), (SpendingLimit.scope == "project", 1), else_=2)
    return tx.execute(statement.order_by(order, SpendingLimit.scope_id)).scalars().all()


def list_limits_of(tx: Session, scopes: Sequence[tuple[str, str]]) -> Sequence[SpendingLimit]:
    """Read the limits of these scopes, in their order."""
    wanted = [sa.and_(SpendingLimit.scope == scope, SpendingLimit.scope_id == id) for scope, id in scopes]
    rows = tx.execute(sa.select(SpendingLimit).where(sa.or_(*wanted))).scalars().all()
    return sorted(rows, key=lambda row: scopes.index((row.scope, row.scope_id)))


def list_organizations_with_limits(tx: Session) -> Sequence[str]:
    """Return the organizations that have any limit."""
    return tx.execute(sa.select(SpendingLimit.organization_id).distinct()).scalars().all()


def find_limit(tx: Session, scope: str, scope_id: str) -> SpendingLimit | None:
    """Read a limit."""
    return tx.get(SpendingLimit, (scope, scope_id), with_for_update=True)


def delete_limit(tx: Session, scope: str, scope_id: str) -> None:
    """Remove a limit."""
    tx.execute(sa.delete(SpendingLimit).where(SpendingLimit.scope == scope, SpendingLimit.scope_id == scope_id))


def sum_used(tx: Session, scope: str, scope_id: str, *, since: datetime, until: datetime) -> tuple[int, int]:
    """Return what was charged since and before ``until``, net of refunds, and what is held now."""
    payer = _PAID_BY[scope] == scope_id
    charged = sa.select(sa.func.sum(Hold.captured_nanos - Hold.refunded_nanos)).where(
        payer, Hold.resolved_at >= since, Hold.resolved_at < until
    )
    held = sa.select(sa.func.sum(Hold.amount_nanos)).where(payer, Hold.resolved_at.is_(None))
    return int(tx.execute(charged).scalar_one() or 0), int(tx.execute(held).scalar_one() or 0)


def list_payers_with_open_holds(tx: Session) -> Sequence[str]:
    """Return the organizations for which anything is held."""
    return tx.execute(sa.select(Hold.organization_id).where(Hold.resolved_at.is_(None)).distinct()).scalars().all()


def list_open_holds(tx: Session, organization_id: str) -> Sequence[Hold]:
    """Read an organization's open holds, the newest first."""
    statement = sa.select(Hold).where(Hold.organization_id == organization_id, Hold.resolved_at.is_(None))
    return tx.execute(statement.order_by(Hold.created_at.desc(), Hold.job_id.desc())).scalars().all()


def insert_alert(tx: Session, values: Mapping[str, object]) -> bool:
    """Keep an alert; False when it is there."""
    statement = upsert.insert(tx, LimitAlert).on_conflict_do_nothing().returning(LimitAlert.percent)
    return tx.execute(statement, values).first() is not None


def delete_alerts(tx: Session, scope: str, scope_id: str, *, period: str) -> None:
    """Forget a scope's alerts of a month."""
    tx.execute(
        sa.delete(LimitAlert).where(
            LimitAlert.scope == scope, LimitAlert.scope_id == scope_id, LimitAlert.period == period
        )
    )


def list_alerts(tx: Session, organization_id: str) -> Sequence[LimitAlert]:
    """Read an organization's alerts, newest first."""
    statement = sa.select(LimitAlert).where(LimitAlert.organization_id == organization_id)
    return tx.execute(statement.order_by(LimitAlert.created_at.desc(), LimitAlert.percent.desc())).scalars().all()


def find_credit_line(tx: Session, organization_id: str) -> CreditLine | None:
    """Read a credit line."""
    return tx.get(CreditLine, organization_id)


def upsert_credit_line(tx: Session, organization_id: str, *, now: datetime, **values: int) -> None:
    """Change a credit line, made when it is not there."""
    fresh = {"limit_nanos": 0, "has_card": 0} | values
    statement = upsert.insert(tx, CreditLine).values(organization_id=organization_id, updated_at=now, **fresh)
    tx.execute(
        statement.on_conflict_do_update(index_elements=["organization_id"], set_={**values, "updated_at": now}),
        execution_options={"synchronize_session": False},
    )
    tx.expire_all()
