"""Statements, usage and the money of a job: the sums of what was done, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from factories import make_purchase
from luthier.accounts import service as accounts
from luthier.billing import ledger, statements, usage_windows
from luthier.billing.ledger import Balance, Cause
from luthier.billing.months import Month, get_month, parse_month
from luthier.errors import InvalidRequest

DOLLAR = 1_000_000_000
JANUARY = Month(2026, 1)
FEBRUARY = Month(2026, 2)


@pytest.fixture
def organization(database, clock):
    """An organization without a cent."""
    with database.transaction() as tx:
        return accounts.create_organization(tx, name="Acme", now=clock.now())


class Books:
    """One organization's ledger, moved at the clock's time."""

    def __init__(self, database, clock, organization):
        self.database, self.clock, self.organization = database, clock, organization
        self.number = 0

    def run(self, operation, *arguments, **options):
        self.number += 1
        options = {"key": f"k{self.number}", **options} if operation not in {ledger.hold, ledger.resolve} else options
        with self.database.transaction() as tx:
            return operation(tx, *arguments, **options, now=self.clock.now())

    def deposit(self, nanos):
        return self.run(ledger.deposit, self.organization, nanos, cause=Cause("payment", "pay-1"), note="Paid")

    def grant(self, nanos, note="Welcome"):
        return self.run(ledger.grant, self.organization, nanos, cause=Cause("operator", "anna"), note=note)

    def job(self, job_id, nanos, captured=None, **changes):
        self.run(ledger.hold, make_purchase(self.organization, nanos, job_id=job_id, **changes))
        if captured is not None:
            self.run(ledger.resolve, job_id, captured)

    def refund(self, job_id, nanos):
        self.run(ledger.refund, job_id, nanos, reason="it was slow")


@pytest.fixture
def books(database, clock, organization):
    return Books(database, clock, organization)


@pytest.fixture
def read(database, organization):
    """Ask the statements of the organization something."""

    def ask(function, *arguments, **options):
        with database.read() as tx:
            return function(tx, organization, *arguments, **options)

    return ask


def list_all_lines(database, organization, month):
    with database.read() as tx:
        return list(statements.stream_lines(tx, organization, month))


def test_statement_when_nothing_happened_then_it_is_all_zero(read, database, organization):
    statement = read(statements.get_statement, JANUARY)
    assert statement.opening == statement.closing == Balance(0, 0, 0, 0)
    assert set(vars(statement.totals).values()) == {0}
    assert list_all_lines(database, organization, JANUARY) == []


def test_statement_when_every_kind_of_entry_was_made_then_each_is_in_its_total(books, read, database, organization):
    books.deposit(20 * DOLLAR)
    books.grant(5 * DOLLAR)
    books.job("ft-whole", 4 * DOLLAR, captured=4 * DOLLAR)
    books.job("ft-part", 10 * DOLLAR, captured=3 * DOLLAR)
    books.job("ft-none", 2 * DOLLAR, captured=0)
    books.job("ft-open", 1 * DOLLAR)
    books.refund("ft-part", 2 * DOLLAR)
    books.run(ledger.adjust, organization, -DOLLAR, cause=Cause("operator", "anna"), note="A slip")
    books.run(ledger.withdraw, organization, 6 * DOLLAR, cause=Cause("payment", "pay-1"), note="Sent back")

    statement = read(statements.get_statement, JANUARY)
    totals = statement.totals
    assert totals == statements.Totals(
        deposited_nanos=20 * DOLLAR,
        withdrawn_nanos=6 * DOLLAR,
        granted_nanos=5 * DOLLAR,
        adjusted_nanos=-DOLLAR,
        held_nanos=17 * DOLLAR,
        charged_nanos=7 * DOLLAR,
        released_nanos=9 * DOLLAR,
        refunded_nanos=2 * DOLLAR,
    )
    with database.read() as tx:
        assert statement.closing == ledger.get_balance(tx, organization)
    assert statement.closing.available_nanos == (
        totals.deposited_nanos - totals.withdrawn_nanos + totals.granted_nanos + totals.adjusted_nanos
        - totals.held_nanos + totals.released_nanos + totals.refunded_nanos
    )  # fmt: skip
    lines = list_all_lines(database, organization, JANUARY)
    assert statement.entries == len(lines) == 12
    assert (lines[-1].available_nanos, lines[-1].held_nanos) == (statement.closing.available_nanos, DOLLAR)
    assert [line.entry.seq for line in lines] == list(range(1, 13))


def test_statement_when_a_month_ends_then_the_next_opens_with_its_close_and_entries_at_the_edge_are_its(
    books, read, clock
):
    books.deposit(20 * DOLLAR)
    clock.advance((datetime(2026, 2, 1, tzinfo=UTC) - clock.now()).total_seconds() - 1e-6)
    books.job("ft-1", 3 * DOLLAR)
    clock.advance(1e-6)
    books.run(ledger.resolve, "ft-1", DOLLAR)
    january, february = read(statements.get_statement, JANUARY), read(statements.get_statement, FEBRUARY)
    assert january.closing == february.opening == Balance(17 * DOLLAR, 0, 3 * DOLLAR, 0)
    assert (january.totals.held_nanos, january.totals.charged_nanos) == (3 * DOLLAR, 0)
    assert (february.totals.released_nanos, february.totals.charged_nanos) == (2 * DOLLAR, DOLLAR)
    assert (january.entries, february.entries) == (2, 1)


def test_statement_when_read_in_pages_then_the_running_balance_goes_on(books, read, database, organization):
    for number in range(1, 8):
        books.deposit(number * DOLLAR)
    whole = list_all_lines(database, organization, JANUARY)
    pages, after, more = [], 0, True
    while more:
        lines, more = read(statements.list_lines, JANUARY, after_seq=after, limit=3)
        pages += lines
        after = lines[-1].entry.seq
    assert pages == whole
    assert [line.available_nanos // DOLLAR for line in pages] == [1, 3, 6, 10, 15, 21, 28]


def test_statement_when_another_organization_moves_money_then_it_is_not_in_it(books, read, database, clock):
    with database.transaction() as tx:
        other = accounts.create_organization(tx, name="Other", now=clock.now())
    Books(database, clock, other).deposit(DOLLAR)
    assert read(statements.get_statement, JANUARY).entries == 0
    assert read(statements.list_usage, JANUARY, by="job") == []


@pytest.mark.parametrize(
    "text", ["2026", "2026-13", "2026-1", "26-01", "2026-00", "9999-12", "0001-01", "x", "２０２６-01"]
)
def test_month_when_it_is_none_then_it_is_refused_with_an_example(text, clock):
    with pytest.raises(InvalidRequest) as caught:
        parse_month(text, now=clock.now())
    assert caught.value.code == "invalid_month"
    assert "2026-01" in caught.value.hint


def test_month_when_it_is_december_then_it_ends_with_the_year():
    assert parse_month("2025-12", now=datetime.now(UTC)).end == datetime(2026, 1, 1, tzinfo=UTC)
    assert get_month(datetime.fromisoformat("2026-01-01T00:30:00+01:00")).period == "2025-12"


def test_usage_when_grouped_then_jobs_tokens_and_net_cost_sum_up_under_each_name(books, read, clock):
    books.deposit(100 * DOLLAR)
    dear = {"billed_tokens": 1000, "rate_nanos": 10_000_000}
    books.job("ft-1", 10 * DOLLAR, captured=10 * DOLLAR, **dear, project_id="proj-1")
    books.job("ft-2", 10 * DOLLAR, captured=4 * DOLLAR, **dear, project_id="proj-2", base_model="acme/other")
    books.job("ft-3", 7 * DOLLAR, captured=7 * DOLLAR, billed_tokens=10, rate_nanos=0, project_id="proj-2")
    books.job("ft-free", DOLLAR, captured=0)
    books.job("ft-open", DOLLAR)
    books.refund("ft-1", 8 * DOLLAR)
    of = {by: read(statements.list_usage, JANUARY, by=by) for by in ("project", "key", "model", "job")}
    assert [(one.id, one.jobs, one.tokens, one.nanos // DOLLAR) for one in of["project"]] == [
        ("proj-2", 2, 410, 11),
        ("proj-1", 1, 1000, 2),
    ]
    assert [(one.id, one.jobs, one.tokens, one.nanos // DOLLAR) for one in of["key"]] == [("key-1", 3, 1410, 13)]
    assert {one.id: one.nanos // DOLLAR for one in of["model"]} == {"luthier/tiny": 9, "acme/other": 4}
    assert {one.id: one.tokens for one in of["job"]} == {"ft-1": 1000, "ft-2": 400, "ft-3": 10}
    clock.advance(timedelta(days=31).total_seconds())
    assert read(statements.list_usage, FEBRUARY, by="job") == []


def test_job_money_when_part_was_captured_and_some_refunded_then_its_entries_tell_it_in_sentences(books, read):
    books.deposit(100 * DOLLAR)
    books.job("ft-1", 10 * DOLLAR, captured=4 * DOLLAR, billed_tokens=10_000_000, rate_nanos=1000)
    books.refund("ft-1", DOLLAR)
    money = read(statements.find_job_money, "ft-1")
    assert [entry.kind for entry in money.entries] == ["hold", "capture", "refund"]
    bought = "10,000,000 tokens of luthier/tiny (sft, Lora) at $1.00 a million (prices of 2025)"
    assert [entry.note for entry in money.entries] == [
        f"Held $10.00 for job ft-1: {bought}; project proj-1, key key-1",
        "Charged $4.00 for job ft-1; released the other $6.00",
        "Refunded $1.00 for job ft-1: it was slow",
    ]
    assert (money.held_nanos, money.released_nanos, money.hold.charged_nanos) == (0, 6 * DOLLAR, 3 * DOLLAR)
    assert statements.describe_hold(money.hold) == (
        "Quoted $10.00: 10,000,000 tokens at $1.00 a million (prices of 2025)"
    )


def test_job_money_when_open_unknown_or_anothers_then_held_or_none(books, read, database, clock):
    books.deposit(100 * DOLLAR)
    books.job("ft-1", 10 * DOLLAR)
    assert read(statements.find_job_money, "ft-1").held_nanos == 10 * DOLLAR
    assert read(statements.find_job_money, "ft-2") is None
    with database.transaction() as tx:
        other = accounts.create_organization(tx, name="Other", now=clock.now())
        assert statements.find_job_money(tx, other, "ft-1") is None


def test_quote_when_the_minimum_charge_decides_then_it_says_so():
    text = statements.describe_quote(
        price_nanos=DOLLAR, billed_tokens=3, rate_nanos=480, currency="EUR", price_version="7"
    )
    assert text == "Quoted 1.00 EUR, the least that a job costs: 3 tokens at 0.48 EUR a million (prices of 7)"


def get_page(read, month=JANUARY, *, now, granularity="day", cursor=None, limit=100):
    return read(usage_windows.get_page, month, granularity=granularity, cursor=cursor, limit=limit, now=now)


def test_windows_when_a_day_is_not_over_then_it_is_not_told_yet(books, read, clock):
    books.deposit(100 * DOLLAR)
    books.job("ft-1", DOLLAR, captured=DOLLAR)
    assert get_page(read, now=clock.now()) == usage_windows.Page([], None, None, None)
    clock.advance(3600)
    assert get_page(read, now=clock.now()).windows == []
    assert get_page(read, now=clock.now(), granularity="hour").windows == []  # a transfer may still be on its way
    clock.advance(usage_windows.CLOSING.total_seconds())
    (window,) = get_page(read, now=clock.now(), granularity="hour").windows
    assert (window.start.hour, window.end.hour) == (12, 13)
    clock.advance(24 * 3600)
    page = get_page(read, now=clock.now())
    assert [(one.start.day, one.end.day) for one in page.windows] == [(1, 2)]
    assert (page.first, page.last_end) == (page.windows[0].start, page.windows[0].end)


def test_windows_when_a_job_is_refunded_later_then_its_day_stays_and_another_has_the_refund(books, read, clock):
    books.grant(2 * DOLLAR)
    books.deposit(100 * DOLLAR)
    books.job("ft-1", 2 * DOLLAR, captured=2 * DOLLAR)  # all of it promotional credit
    books.job("ft-2", 10 * DOLLAR, captured=5 * DOLLAR, billed_tokens=10, rate_nanos=DOLLAR)
    clock.advance(86_400)
    before = get_page(read, now=clock.now()).windows
    books.refund("ft-2", DOLLAR)
    clock.advance(86_400)
    page = get_page(read, now=clock.now())
    assert page.windows[:1] == before
    told = [
        [(item.kind, item.job_id, item.tokens, item.nanos, item.is_credit) for item in one.items]
        for one in page.windows
    ]
    assert told == [
        [("charge", "ft-1", 2 * DOLLAR, 2 * DOLLAR, True), ("charge", "ft-2", 5, 5 * DOLLAR, False)],
        [("refund", "ft-2", 0, -DOLLAR, False)],
    ]


def test_windows_when_read_in_pages_then_each_comes_once_and_a_foreign_cursor_is_refused(books, read, clock):
    books.deposit(100 * DOLLAR)
    for number in range(5):
        books.job(f"ft-{number}", DOLLAR, captured=DOLLAR)
        clock.advance(86_400)
    first = get_page(read, now=clock.now(), limit=2)
    second = get_page(read, now=clock.now(), limit=2, cursor=first.next_cursor)
    third = get_page(read, now=clock.now(), limit=2, cursor=second.next_cursor)
    pages = (first, second, third)
    assert [window.start.day for page in pages for window in page.windows] == [1, 2, 3, 4, 5]
    assert third.next_cursor is None
    assert {(page.first.day, page.last_end.day) for page in pages} == {(1, 6)}
    naive = "MjAyNi0wMSBkYXkgMjAyNi0wMS0wMg=="  # "2026-01 day 2026-01-02"
    for cursor, granularity in ((first.next_cursor, "hour"), ("x", "day"), ("é", "day"), (naive, "day")):
        with pytest.raises(InvalidRequest, match="cursor"):
            get_page(read, now=clock.now(), cursor=cursor, granularity=granularity)
    with pytest.raises(InvalidRequest, match="cursor"):
        get_page(read, Month(2025, 12), now=clock.now(), cursor=first.next_cursor)


def test_entries_when_counted_then_it_is_those_of_all_organizations(books, database, clock):
    books.deposit(DOLLAR)
    with database.transaction() as tx:
        other = accounts.create_organization(tx, name="Other", now=clock.now())
    Books(database, clock, other).deposit(DOLLAR)
    with database.read() as tx:
        assert statements.count_entries(tx) == 2
