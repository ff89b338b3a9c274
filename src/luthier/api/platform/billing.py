"""What an organization has, spends and may spend. Any of its keys may look; an admin key sets limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from luthier.accounts import service as accounts
from luthier.accounts.service import Principal
from luthier.api.auth import AdminParam, PrincipalParam
from luthier.api.context import Services, ServicesParam
from luthier.api.platform import statement_csv
from luthier.api.platform.amounts import AmountText, spell
from luthier.api.platform.job_money import describe_entry
from luthier.api.times import Time
from luthier.billing import funds, ledger, limits, statements
from luthier.billing.ledger import Balance
from luthier.billing.limits import AlertView, LimitView, Scope
from luthier.billing.money import parse_amount, parse_decimal
from luthier.billing.months import Month, parse_month
from luthier.billing.statements import By, Line, Statement
from luthier.db import Session
from luthier.errors import NotFound

MAX_LINES: Final = 1000

router = APIRouter(prefix="/api/billing", tags=["billing"])

MonthParam = Annotated[str | None, Query(description="YYYY-MM, in UTC; the present month, when left out")]


class BalanceAnswer(BaseModel):
    """What an organization has, and what this key may still spend.

    ``available`` is cash and credit that nothing is held of; ``spendable`` reckons with the credit line and every limit.
    """

    object: Literal["balance"] = "balance"
    organization_id: str
    organization_name: str
    currency: str
    available_nanos: int
    available: str
    cash_nanos: int
    cash: str
    credit_nanos: int
    credit: str
    held_nanos: int
    held: str
    spent_nanos: int
    spent: str
    credit_limit_nanos: int = Field(description="How far below zero the balance may go, in principle")
    credit_limit: str
    usable_credit_nanos: int = Field(description="So much of it counts now: with card payments, once a card is on file")
    usable_credit: str
    has_card: bool
    spendable_nanos: int
    spendable: str
    minimum_nanos: int = Field(description="What must be available for an upload or a job to begin")
    minimum: str
    is_enforced: bool = Field(description="False: everything is metered, and nothing is refused")
    processor: Literal["manual", "stripe"]


@router.get("/balance")
def get_balance(principal: PrincipalParam, services: ServicesParam) -> BalanceAnswer:
    """Show what the organization has, and what this key may spend."""
    now, policy = services.clock.now(), services.policy
    with services.database.read() as tx:
        balance = ledger.get_balance(tx, principal.organization_id)
        line = limits.get_credit_line(tx, principal.organization_id)
        room = funds.get_room(
            tx,
            organization_id=principal.organization_id,
            project_id=principal.project_id,
            api_key_id=principal.api_key_id,
            policy=policy,
            now=now,
        )
    return BalanceAnswer(
        organization_id=principal.organization_id,
        organization_name=principal.organization_name,
        currency=policy.currency,
        has_card=line.has_card,
        is_enforced=policy.enabled,
        processor=policy.processor,
        **spell(
            available_nanos=balance.available_nanos,
            cash_nanos=balance.cash_nanos,
            credit_nanos=balance.credit_nanos,
            held_nanos=balance.held_nanos,
            spent_nanos=balance.spent_nanos,
            credit_limit_nanos=line.limit_nanos,
            usable_credit_nanos=room.credit_limit_nanos,
            spendable_nanos=room.spendable_nanos,
            minimum_nanos=policy.minimum_nanos,
        ),
    )


class StatementLine(BaseModel):
    """One entry: what happened, as a sentence; what it changed; what it left."""

    seq: int
    created_at: Time
    kind: str
    cause_kind: Literal["job", "payment", "operator"]
    cause_id: str
    text: str
    available_change_nanos: int
    available_change: str
    held_change_nanos: int
    held_change: str
    charged_nanos: int = Field(description="What was charged; below zero for a refund")
    charged: str
    available_nanos: int
    available: str
    held_nanos: int
    held: str


class StatementBalance(BaseModel):
    """The accounts at one moment."""

    available_nanos: int
    available: str
    cash_nanos: int
    cash: str
    credit_nanos: int
    credit: str
    held_nanos: int
    held: str
    spent_nanos: int
    spent: str


class StatementTotals(BaseModel):
    """The month's entries, summed by what they were."""

    deposited_nanos: int
    deposited: str
    withdrawn_nanos: int
    withdrawn: str
    granted_nanos: int
    granted: str
    adjusted_nanos: int
    adjusted: str
    held_nanos: int
    held: str
    charged_nanos: int
    charged: str
    released_nanos: int
    released: str
    refunded_nanos: int
    refunded: str


class StatementAnswer(BaseModel):
    """A month: balances, totals, and a page of its entries, oldest first."""

    object: Literal["statement"] = "statement"
    organization_id: str
    month: str
    currency: str
    starts_at: Time
    ends_at: Time
    opening: StatementBalance
    closing: StatementBalance
    totals: StatementTotals
    entries: int
    data: list[StatementLine]
    next_after: int | None = Field(description="Give it as `after` for the next page; null on the last")


@router.get(
    "/statement",
    response_model=StatementAnswer,
    responses={200: {"content": {"text/csv": {}}, "description": "The statement, as JSON or as CSV"}},
)
def get_statement(
    *,
    principal: PrincipalParam,
    services: ServicesParam,
    month: MonthParam = None,
    format: Annotated[Literal["json", "csv"], Query(description="csv: every entry of the month, in one file")] = "json",
    after: Annotated[int, Query(ge=0, le=2**62, description="The number of the last entry that was read")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_LINES, description="Entries on a page")] = MAX_LINES,
) -> Any:
    """Show a month's statement: balances, totals, and every entry with what it left."""
    wanted = parse_month(month, now=services.clock.now())
    if format == "csv":
        return _answer_csv(services, principal, wanted)
    with services.database.read() as tx:
        statement = statements.get_statement(tx, principal.organization_id, wanted)
        lines, has_more = statements.list_lines(tx, principal.organization_id, wanted, after_seq=after, limit=limit)
    return _describe_statement(statement, lines, services, next_after=lines[-1].entry.seq if has_more else None)


def _answer_csv(services: Services, principal: Principal, month: Month) -> StreamingResponse:
    def stream() -> Iterator[str]:
        with services.database.read() as tx:
            lines = statements.stream_lines(tx, principal.organization_id, month)
            yield from statement_csv.write(lines, currency=services.policy.currency)

    return StreamingResponse(
        stream(),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="luthier-{month.period}.csv"'},
    )


def _describe_statement(
    statement: Statement, lines: list[Line], services: Services, *, next_after: int | None
) -> StatementAnswer:
    return StatementAnswer(
        organization_id=statement.organization_id,
        month=statement.month.period,
        currency=services.policy.currency,
        starts_at=statement.month.start,
        ends_at=statement.month.end,
        opening=StatementBalance(**_spell_balance(statement.opening)),
        closing=StatementBalance(**_spell_balance(statement.closing)),
        totals=StatementTotals(**spell(**vars(statement.totals))),
        entries=statement.entries,
        data=[_describe_line(line) for line in lines],
        next_after=next_after,
    )


def _spell_balance(balance: Balance) -> dict[str, Any]:
    return spell(available_nanos=balance.available_nanos, **vars(balance))


def _describe_line(line: Line) -> StatementLine:
    return StatementLine(
        **describe_entry(line.entry),
        **spell(
            available_change_nanos=line.available_change_nanos,
            held_change_nanos=line.held_change_nanos,
            charged_nanos=line.entry.amounts.get("spent", 0),
            available_nanos=line.available_nanos,
            held_nanos=line.held_nanos,
        ),
    )


class UsedAnswer(BaseModel):
    """What was used under one name. ``cost`` is net of what was refunded since."""

    id: str
    name: str
    jobs: int
    tokens: int
    cost_nanos: int
    cost: str


class UsageAnswer(BaseModel):
    """What the jobs that were charged in a month used, the most costly first."""

    object: Literal["usage"] = "usage"
    organization_id: str
    month: str
    by: By
    currency: str
    jobs: int
    tokens: int
    cost_nanos: int
    cost: str
    data: list[UsedAnswer]


@router.get("/usage")
def get_usage(
    principal: PrincipalParam,
    services: ServicesParam,
    month: MonthParam = None,
    by: Annotated[By, Query(description="What the rows are")] = "project",
) -> UsageAnswer:
    """Show what was used in a month by each project, key, model or job: jobs, tokens, cost."""
    wanted = parse_month(month, now=services.clock.now())
    with services.database.read() as tx:
        used = statements.list_usage(tx, principal.organization_id, wanted, by=by)
        names = _list_names(tx, principal.organization_id, by)
    return UsageAnswer(
        organization_id=principal.organization_id,
        month=wanted.period,
        by=by,
        currency=services.policy.currency,
        jobs=sum(one.jobs for one in used),
        tokens=sum(one.tokens for one in used),
        **spell(cost_nanos=sum(one.nanos for one in used)),
        data=[
            UsedAnswer(
                id=one.id,
                name=names.get(one.id, one.id),
                jobs=one.jobs,
                tokens=one.tokens,
                **spell(cost_nanos=one.nanos),
            )
            for one in used
        ],
    )


def _list_names(tx: Session, organization_id: str, by: By | Scope) -> dict[str, str]:
    """Return what people call projects and keys, by id; models and jobs go by their ids."""
    if by == "project":
        return {project.id: project.slug for project in accounts.list_projects(tx, organization_id)}
    if by == "key":
        return {key.id: key.name for key in accounts.list_organization_keys(tx, organization_id)}
    return {}


class LimitRequest(BaseModel):
    """The most that may be spent in a calendar month."""

    model_config = ConfigDict(extra="forbid")

    monthly: AmountText = Field(description='As a decimal number in the currency, "50" or "12.50"; 0 allows nothing')


class LimitAnswer(BaseModel):
    """A limit and what is used of it this month. ``left`` is below zero when it was lowered below that."""

    object: Literal["spending_limit"] = "spending_limit"
    scope: Scope
    scope_id: str
    name: str
    month: str
    currency: str
    monthly_nanos: int
    monthly: str
    used_nanos: int = Field(description="Charged this month, net of refunds, and held now")
    used: str
    held_nanos: int
    held: str
    left_nanos: int
    left: str


class LimitList(BaseModel):
    """The organization's limits: its own first, then its projects', then its keys'."""

    object: Literal["list"] = "list"
    currency: str
    data: list[LimitAnswer]


@router.get("/limits")
def list_limits(principal: PrincipalParam, services: ServicesParam) -> LimitList:
    """List the monthly spending limits of the organization, its projects and its keys."""
    with services.database.read() as tx:
        found = limits.list_limits(tx, principal.organization_id, now=services.clock.now())
        names = _list_scope_names(tx, principal)
    return LimitList(
        currency=services.policy.currency,
        data=[_describe_limit(limit, names, services.policy.currency) for limit in found],
    )


@router.put("/limits/{scope}/{scope_id}")
def set_limit(
    scope: Scope, scope_id: str, body: LimitRequest, principal: AdminParam, services: ServicesParam
) -> LimitAnswer:
    """Limit what the organization, a project (by id or slug) or a key may spend a month.

    A limit below what is used already ends the newest jobs, after a warning and a grace.
    """
    monthly_nanos = 0 if parse_decimal(body.monthly) == 0 else parse_amount(body.monthly, param="monthly")
    with services.database.transaction() as tx:
        own_id = _require_scope(tx, principal, scope, scope_id)
        limit = limits.set_limit(tx, principal.organization_id, scope, own_id, monthly_nanos, now=services.clock.now())
        names = _list_scope_names(tx, principal)
    return _describe_limit(limit, names, services.policy.currency)


class RemovedLimit(BaseModel):
    """A scope that has no limit now."""

    object: Literal["spending_limit"] = "spending_limit"
    scope: Scope
    scope_id: str
    deleted: Literal[True] = True


@router.delete("/limits/{scope}/{scope_id}")
def remove_limit(scope: Scope, scope_id: str, principal: AdminParam, services: ServicesParam) -> RemovedLimit:
    """Take a limit away; nothing happens when there is none."""
    with services.database.transaction() as tx:
        own_id = _require_scope(tx, principal, scope, scope_id)
        limits.remove_limit(tx, scope, own_id)
    return RemovedLimit(scope=scope, scope_id=own_id)


def _require_scope(tx: Session, principal: Principal, scope: Scope, scope_id: str) -> str:
    """Return the id of a scope of the caller's organization. Raises NotFound for any other."""
    if scope == "project":
        return accounts.get_project(tx, principal.organization_id, scope_id).id
    if scope == "key":
        return accounts.get_organization_key(tx, principal.organization_id, scope_id).id
    if scope_id != principal.organization_id:
        raise NotFound(
            "organization_not_found",
            f"this key does not belong to such an organization: {scope_id}",
            hint=f"its own is {principal.organization_id}",
        )
    return scope_id


def _list_scope_names(tx: Session, principal: Principal) -> dict[str, str]:
    own = {principal.organization_id: principal.organization_name}
    scopes: tuple[Scope, Scope] = ("project", "key")
    return own | {
        id: name for scope in scopes for id, name in _list_names(tx, principal.organization_id, scope).items()
    }


def _describe_limit(limit: LimitView, names: dict[str, str], currency: str) -> LimitAnswer:
    return LimitAnswer(
        scope=limit.scope,
        scope_id=limit.scope_id,
        name=names.get(limit.scope_id, limit.scope_id),
        month=limit.period,
        currency=currency,
        **spell(
            monthly_nanos=limit.monthly_nanos,
            used_nanos=limit.used_nanos,
            held_nanos=limit.held_nanos,
            left_nanos=limit.left_nanos,
        ),
    )


class AlertAnswer(BaseModel):
    """That spending reached ``percent`` of a limit."""

    object: Literal["spending_alert"] = "spending_alert"
    scope: Scope
    scope_id: str
    name: str
    month: str
    percent: int
    limit_nanos: int
    limit: str
    used_nanos: int
    used: str
    created_at: Time


class AlertList(BaseModel):
    """The organization's alerts, newest first."""

    object: Literal["list"] = "list"
    currency: str
    data: list[AlertAnswer]


@router.get("/alerts")
def list_alerts(principal: PrincipalParam, services: ServicesParam) -> AlertList:
    """List the alerts: each time that spending reached 50, 80 or 100 % of a limit."""
    with services.database.read() as tx:
        found = limits.list_alerts(tx, principal.organization_id)
        names = _list_scope_names(tx, principal)
    return AlertList(currency=services.policy.currency, data=[_describe_alert(alert, names) for alert in found])


def _describe_alert(alert: AlertView, names: dict[str, str]) -> AlertAnswer:
    return AlertAnswer(
        scope=alert.scope,
        scope_id=alert.scope_id,
        name=names.get(alert.scope_id, alert.scope_id),
        month=alert.period,
        percent=alert.percent,
        created_at=alert.created_at,
        **spell(limit_nanos=alert.limit_nanos, used_nanos=alert.used_nanos),
    )
