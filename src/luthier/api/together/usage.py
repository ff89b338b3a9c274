"""``GET /v1/billing/usage`` in the Together dialect: a month's charges and refunds, in windows of a day or an hour."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from luthier.api.auth import PrincipalParam
from luthier.api.context import ServicesParam
from luthier.api.times import Time
from luthier.billing import usage_windows
from luthier.billing.money import format_decimal
from luthier.billing.months import parse_month
from luthier.billing.usage_windows import Granularity, Item, Window
from luthier.errors import Forbidden

MAX_WINDOWS: Final = 1000

router = APIRouter(tags=["billing"])


class AppliedCredit(BaseModel):
    """What covered a charge: promotional credit all of it, or paid money."""

    type: Literal["PREPAID", "CREDIT"]


class LineItem(BaseModel):
    """One charge or refund of one job. Amounts and quantities are decimal numbers as text."""

    product_name: str
    attributes: dict[str, str] = Field(description="Which job, project and key")
    pricing_dimensions: dict[str, str] = Field(description="What the rate depends on")
    quantity: str = Field(description="Tokens; 0 for a refund")
    unit_price: str = Field(description="Of one token")
    cost: str = Field(description="Below zero for a refund")
    applied_credit: AppliedCredit


class UsageWindow(BaseModel):
    """A day or an hour in UTC that has usage."""

    date: str
    start_time: Time
    end_time: Time
    line_items: list[LineItem]


class UsageReport(BaseModel):
    """One page of a month's windows."""

    object: Literal["list"] = "list"
    organization_id: str
    billing_period: str
    currency: str
    earliest_window_start: Time | None
    latest_window_end: Time | None
    data: list[UsageWindow]
    next_cursor: str | None


@router.get("/v1/billing/usage")
def list_usage(
    *,
    principal: PrincipalParam,
    services: ServicesParam,
    month: Annotated[str | None, Query(description="YYYY-MM, in UTC; the present month, when left out")] = None,
    granularity: Annotated[Granularity, Query(description="Length of a window")] = "day",
    limit: Annotated[int, Query(ge=1, le=MAX_WINDOWS, description="Windows on a page")] = 100,
    after: Annotated[str | None, Query(description="next_cursor of the page before")] = None,
    organization_id: Annotated[str | None, Query(description="The key's own organization, or left out")] = None,
) -> UsageReport:
    """List what the organization was charged in a month; only windows that are over are told, and never change."""
    if organization_id not in {None, principal.organization_id}:
        raise Forbidden(
            "not_your_organization",
            f"this key does not belong to organization {organization_id}",
            hint=f"leave organization_id out, or give the key's own: {principal.organization_id}",
            param="organization_id",
        )
    now = services.clock.now()
    wanted = parse_month(month, now=now)
    with services.database.read() as tx:
        page = usage_windows.get_page(
            tx, principal.organization_id, wanted, granularity=granularity, cursor=after, limit=limit, now=now
        )
    return UsageReport(
        organization_id=principal.organization_id,
        billing_period=wanted.period,
        currency=services.policy.currency,
        earliest_window_start=page.first,
        latest_window_end=page.last_end,
        data=[_describe_window(window) for window in page.windows],
        next_cursor=page.next_cursor,
    )


def _describe_window(window: Window) -> UsageWindow:
    return UsageWindow(
        date=window.start.date().isoformat(),
        start_time=window.start,
        end_time=window.end,
        line_items=[_describe_item(item) for item in window.items],
    )


def _describe_item(item: Item) -> LineItem:
    return LineItem(
        product_name="Fine-tuning tokens" if item.kind == "charge" else "Fine-tuning refund",
        attributes={"job_id": item.job_id, "project_id": item.project_id, "api_key_id": item.api_key_id},
        pricing_dimensions={
            "model": item.base_model,
            "training_method": item.method,
            "training_type": item.training_type,
            "price_version": item.price_version,
        },
        quantity=str(item.tokens),
        unit_price=format_decimal(item.rate_nanos),
        cost=format_decimal(item.nanos),
        applied_credit=AppliedCredit(type="CREDIT" if item.is_credit else "PREPAID"),
    )
