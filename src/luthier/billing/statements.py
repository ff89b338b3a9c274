"""Money told to people: the statement of a month, what was used by whom, and the money of one job.

Everything here is read from the ledger and from holds; nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from luthier.billing import ledger
from luthier.billing import statement_queries as queries
from luthier.billing.ledger import Balance, EntryView, HoldView, Kind
from luthier.billing.money import format_money
from luthier.billing.months import Month
from luthier.billing.statement_queries import Sums
from luthier.db import Session

By = Literal["project", "key", "model", "job"]
_COLUMNS: Final[Mapping[By, str]] = {
    "project": "project_id",
    "key": "api_key_id",
    "model": "base_model",
    "job": "job_id",
}
TOKENS_A_RATE: Final = 1_000_000
_NOTHING: Final = (0, Sums(0, 0, 0, 0))


@dataclass(frozen=True)
class Totals:
    """What a month's entries come to, by what they were. All but ``adjusted_nanos`` are amounts from zero on.

    opening available + deposited - withdrawn + granted + adjusted - held + released + refunded = closing available
    """

    deposited_nanos: int
    withdrawn_nanos: int
    granted_nanos: int
    adjusted_nanos: int
    held_nanos: int
    charged_nanos: int
    released_nanos: int
    refunded_nanos: int


@dataclass(frozen=True)
class Statement:
    """A month's balances and totals; its lines are listed apart."""

    organization_id: str
    month: Month
    opening: Balance
    closing: Balance
    totals: Totals
    entries: int


@dataclass(frozen=True)
class Line:
    """One entry, what it changed, and what it left."""

    entry: EntryView
    available_change_nanos: int
    held_change_nanos: int
    available_nanos: int
    held_nanos: int


@dataclass(frozen=True)
class Used:
    """What was used under one name (a project's, key's or job's id, or a model). ``nanos`` is net of refunds."""

    id: str
    jobs: int
    tokens: int
    nanos: int


@dataclass(frozen=True)
class JobMoney:
    """What became of the money of one job. Without a hold it never had a price that was set aside."""

    job_id: str
    hold: HoldView | None
    entries: list[EntryView]

    @property
    def held_nanos(self) -> int:
        """What is set aside now."""
        return self.hold.amount_nanos if self.hold and self.hold.resolved_at is None else 0

    @property
    def released_nanos(self) -> int:
        """What was set aside and not charged."""
        if self.hold is None or self.hold.captured_nanos is None:
            return 0
        return self.hold.amount_nanos - self.hold.captured_nanos


def get_statement(tx: Session, organization_id: str, month: Month) -> Statement:
    """Return the balances and totals of a month."""
    opening = queries.sum_before(tx, organization_id, month.start)
    kinds = queries.sum_by_kind(tx, organization_id, month.start, month.end)
    moved = [sums for _count, sums in kinds.values()]
    closing = Sums(*map(sum, zip(opening, *moved, strict=True)))
    return Statement(
        organization_id=organization_id,
        month=month,
        opening=Balance(*opening),
        closing=Balance(*closing),
        totals=_total(kinds),
        entries=sum(count for count, _sums in kinds.values()),
    )


def _total(kinds: Mapping[str, tuple[int, Sums]]) -> Totals:
    def get(kind: Kind) -> Sums:
        return kinds.get(kind, _NOTHING)[1]

    charged = get("capture").spent_nanos
    return Totals(
        deposited_nanos=get("deposit").cash_nanos,
        withdrawn_nanos=-get("withdraw").cash_nanos,
        granted_nanos=get("grant").credit_nanos,
        adjusted_nanos=get("adjust").cash_nanos,
        held_nanos=get("hold").held_nanos,
        charged_nanos=charged,
        released_nanos=-get("capture").held_nanos - charged - get("release").held_nanos,
        refunded_nanos=-get("refund").spent_nanos,
    )


def stream_lines(tx: Session, organization_id: str, month: Month, *, after_seq: int = 0) -> Iterator[Line]:
    """Yield the lines of a month, oldest first: all, or those after an entry's number."""
    before = queries.sum_before(tx, organization_id, month.start, through_seq=after_seq)
    available, held = before.cash_nanos + before.credit_nanos, before.held_nanos
    for row in queries.stream_entries(tx, organization_id, month.start, month.end, after_seq=after_seq):
        entry = ledger.view_entry(row)
        available_change = entry.amounts.get("cash", 0) + entry.amounts.get("credit", 0)
        held_change = entry.amounts.get("held", 0)
        available, held = available + available_change, held + held_change
        yield Line(entry, available_change, held_change, available, held)


def list_lines(
    tx: Session, organization_id: str, month: Month, *, after_seq: int = 0, limit: int
) -> tuple[list[Line], bool]:
    """Return so many lines of a month after an entry's number, and whether there are more."""
    lines = list(islice(stream_lines(tx, organization_id, month, after_seq=after_seq), limit + 1))
    return lines[:limit], len(lines) > limit


def list_usage(tx: Session, organization_id: str, month: Month, *, by: By) -> list[Used]:
    """Return what the jobs that were charged in a month used, the most costly first.

    A job counts in the month of its charge. What was refunded of it since, in whatever month, is taken off its cost.
    """
    rows = queries.sum_usage(tx, organization_id, month.start, month.end, by=_COLUMNS[by])
    return [Used(*row) for row in rows]


def find_job_money(tx: Session, organization_id: str, job_id: str) -> JobMoney | None:
    """Return the money of an organization's job; None when nothing was ever set aside for such a job."""
    hold = ledger.find_hold(tx, job_id)
    if hold is None or hold.organization_id != organization_id:
        return None
    return JobMoney(job_id, hold, ledger.list_entries(tx, organization_id, job_id=job_id))


def describe_quote(
    *, price_nanos: int, billed_tokens: int, rate_nanos: int, currency: str, price_version: str | None
) -> str:
    """Say how a price comes about."""
    rate = format_money(rate_nanos * TOKENS_A_RATE, currency)
    least = ", the least that a job costs" if price_nanos > billed_tokens * rate_nanos else ""
    prices = f" (prices of {price_version})" if price_version else ""
    return f"Quoted {format_money(price_nanos, currency)}{least}: {billed_tokens:,} tokens at {rate} a million{prices}"


def describe_hold(hold: HoldView) -> str:
    """Say how the price of what is held comes about."""
    return describe_quote(
        price_nanos=hold.amount_nanos,
        billed_tokens=hold.billed_tokens,
        rate_nanos=hold.rate_nanos,
        currency=hold.currency,
        price_version=hold.price_version,
    )


def count_entries(tx: Session) -> int:
    """Return how many entries the whole ledger has: the work of a verification."""
    return queries.count_entries(tx)
