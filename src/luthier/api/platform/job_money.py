"""The money of one job: what was quoted, held, charged, released and refunded, each as a sentence of the ledger."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from luthier.api.auth import PrincipalParam
from luthier.api.context import ServicesParam
from luthier.api.platform.amounts import spell
from luthier.api.times import Time
from luthier.billing import statements
from luthier.billing.ledger import EntryView, HoldView
from luthier.billing.money import format_decimal
from luthier.billing.statements import JobMoney
from luthier.jobs import service as jobs
from luthier.jobs.schemas import JobView

router = APIRouter(prefix="/api/billing/jobs", tags=["billing"])


class JobEntry(BaseModel):
    """One entry of the ledger about the job."""

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


class QuoteAnswer(BaseModel):
    """How the price comes about: so many tokens at such a rate."""

    text: str
    price_nanos: int
    price: str
    billed_tokens: int
    rate_nanos: int = Field(description="A token")
    rate_a_million: str = Field(description="A million tokens, as the price list has it")
    price_version: str | None


class JobMoneyAnswer(BaseModel):
    """What became of the money of one job. ``cost`` is what was charged and not refunded."""

    object: Literal["job_money"] = "job_money"
    job_id: str
    project_id: str
    api_key_id: str
    base_model: str
    currency: str
    quote: QuoteAnswer | None = Field(description="Null until the job is priced")
    held_nanos: int = Field(description="Set aside now")
    held: str
    charged_nanos: int
    charged: str
    released_nanos: int
    released: str
    refunded_nanos: int
    refunded: str
    cost_nanos: int
    cost: str
    sentences: list[str] = Field(description="All of it in words, in its order")
    data: list[JobEntry]


@router.get("/{job_id}")
def get_job_money(job_id: str, principal: PrincipalParam, services: ServicesParam) -> JobMoneyAnswer:
    """Show the money of one job of the organization: quote, hold, capture, release, refund."""
    with services.database.read() as tx:
        money = statements.find_job_money(tx, principal.organization_id, job_id)
        if money is None or money.hold is None:
            job = jobs.get_job(tx, principal.project_id, job_id)
            return _describe_unpaid(job, services.policy.currency)
    return _describe(money, money.hold)


def _describe(money: JobMoney, hold: HoldView) -> JobMoneyAnswer:
    quote = QuoteAnswer(
        text=statements.describe_hold(hold),
        billed_tokens=hold.billed_tokens,
        rate_a_million=_spell_rate(hold.rate_nanos),
        rate_nanos=hold.rate_nanos,
        price_version=hold.price_version,
        **spell(price_nanos=hold.amount_nanos),
    )
    return JobMoneyAnswer(
        job_id=hold.job_id,
        project_id=hold.project_id,
        api_key_id=hold.api_key_id,
        base_model=hold.base_model,
        currency=hold.currency,
        quote=quote,
        sentences=[quote.text, *(entry.note for entry in money.entries)],
        data=[_describe_job_entry(entry) for entry in money.entries],
        **spell(
            held_nanos=money.held_nanos,
            charged_nanos=hold.captured_nanos or 0,
            released_nanos=money.released_nanos,
            refunded_nanos=hold.refunded_nanos,
            cost_nanos=hold.charged_nanos,
        ),
    )


def _describe_unpaid(job: JobView, currency: str) -> JobMoneyAnswer:
    """Describe a job for which nothing was set aside: not priced yet, or at a price that could not be paid."""
    quote = _quote_unpaid(job, currency)
    sentence = "Nothing was set aside for this job" if job.finished_at else "Nothing is set aside for this job yet"
    return JobMoneyAnswer(
        job_id=job.id,
        project_id=job.project_id,
        api_key_id=job.api_key_id,
        base_model=job.base_model,
        currency=job.currency or currency,
        quote=quote,
        sentences=[quote.text if quote else "Not priced yet", sentence],
        data=[],
        **spell(held_nanos=0, charged_nanos=0, released_nanos=0, refunded_nanos=0, cost_nanos=0),
    )


def _quote_unpaid(job: JobView, currency: str) -> QuoteAnswer | None:
    if job.price_nanos is None or job.billed_tokens is None or job.rate_nanos is None:
        return None
    text = statements.describe_quote(
        price_nanos=job.price_nanos,
        billed_tokens=job.billed_tokens,
        rate_nanos=job.rate_nanos,
        currency=job.currency or currency,
        price_version=job.price_version,
    )
    return QuoteAnswer(
        text=text,
        billed_tokens=job.billed_tokens,
        rate_nanos=job.rate_nanos,
        rate_a_million=_spell_rate(job.rate_nanos),
        price_version=job.price_version,
        **spell(price_nanos=job.price_nanos),
    )


def _spell_rate(rate_nanos: int) -> str:
    return format_decimal(rate_nanos * statements.TOKENS_A_RATE)


def _describe_job_entry(entry: EntryView) -> JobEntry:
    available = entry.amounts.get("cash", 0) + entry.amounts.get("credit", 0)
    return JobEntry(
        **describe_entry(entry),
        **spell(available_change_nanos=available, held_change_nanos=entry.amounts.get("held", 0)),
    )


def describe_entry(entry: EntryView) -> dict[str, Any]:
    """Return what every entry tells: its number, time, kind, cause and sentence."""
    return {
        "seq": entry.seq,
        "created_at": entry.created_at,
        "kind": entry.kind,
        "cause_kind": entry.cause.kind,
        "cause_id": entry.cause.id,
        "text": entry.note,
    }
