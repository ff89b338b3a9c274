"""The ledger: what each operation moves, that nothing is moved twice, and that a change of the books is found."""

from __future__ import annotations

import threading
from datetime import timedelta, timezone

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError

from factories import make_principal, make_purchase
from luthier import ids
from luthier.accounts import service as accounts
from luthier.billing import ledger
from luthier.billing.audit import verify as audit
from luthier.billing.ledger import Balance, Cause, Overdrawn
from luthier.billing.money import MAX_NANOS
from luthier.errors import Conflict, InvalidRequest

OPERATOR = Cause("operator", "cli")
DOLLAR = 1_000_000_000


@pytest.fixture
def organization(database, clock):
    """An organization without a cent."""
    with database.transaction() as tx:
        return accounts.create_organization(tx, name="Acme", now=clock.now())


@pytest.fixture
def move(database, organization, clock):
    """Run one operation in a transaction of its own."""

    def run(operation, *arguments, **options):
        with database.transaction() as tx:
            if operation is ledger.hold:
                nanos, job_id = arguments
                return operation(tx, make_purchase(organization, nanos, job_id=job_id), now=clock.now(), **options)
            if operation in {ledger.resolve, ledger.refund}:
                return operation(tx, *arguments, now=clock.now(), **options)
            return operation(tx, organization, *arguments, now=clock.now(), **options)

    return run


@pytest.fixture
def balance(database, organization):
    """Return the organization's balance as it is now."""

    def read():
        with database.read() as tx:
            return ledger.get_balance(tx, organization)

    return read


def give(move, *, cash=0, credit=0):
    if cash:
        move(ledger.deposit, cash, key="pay-1", cause=Cause("payment", "pay-1"), note="Paid by card")
    if credit:
        move(ledger.grant, credit, key="grant-1", cause=OPERATOR, note="Welcome")


def hold(move, nanos, job_id="ft-1", **options):
    return move(ledger.hold, nanos, job_id, **options)


def test_deposit_and_grant_add_to_their_own_accounts(move, balance):
    give(move, cash=3 * DOLLAR, credit=2 * DOLLAR)
    assert balance() == Balance(3 * DOLLAR, 2 * DOLLAR, 0, 0)
    assert balance().available_nanos == 5 * DOLLAR


def test_hold_takes_credit_first_and_a_release_gives_each_its_own_back(move, balance):
    give(move, cash=3 * DOLLAR, credit=2 * DOLLAR)
    hold(move, 4 * DOLLAR)
    assert balance() == Balance(1 * DOLLAR, 0, 4 * DOLLAR, 0)
    entry = move(ledger.resolve, "ft-1", 0)
    assert (entry.kind, entry.note) == ("release", "Released $4.00 held for job ft-1; nothing was charged")
    assert balance() == Balance(3 * DOLLAR, 2 * DOLLAR, 0, 0)


def test_capture_of_a_part_spends_credit_first_and_releases_the_rest(move, balance):
    give(move, cash=3 * DOLLAR, credit=2 * DOLLAR)
    hold(move, 4 * DOLLAR)
    entry = move(ledger.resolve, "ft-1", 3 * DOLLAR)
    assert entry.note == "Charged $3.00 for job ft-1; released the other $1.00"
    assert balance() == Balance(2 * DOLLAR, 0, 0, 3 * DOLLAR)


def test_refund_gives_cash_back_first_and_never_more_than_was_charged(move, balance):
    give(move, cash=3 * DOLLAR, credit=2 * DOLLAR)
    hold(move, 4 * DOLLAR)
    move(ledger.resolve, "ft-1", 4 * DOLLAR)
    move(ledger.refund, "ft-1", 3 * DOLLAR, key="refund-1", reason="a disk broke")
    assert balance() == Balance(3 * DOLLAR, 1 * DOLLAR, 0, 1 * DOLLAR)
    with pytest.raises(InvalidRequest, match=r"\$4\.00 was charged, \$3\.00 of it refunded before"):
        move(ledger.refund, "ft-1", 2 * DOLLAR, key="refund-2", reason="again")
    move(ledger.refund, "ft-1", 1 * DOLLAR, key="refund-3", reason="the rest")
    assert balance() == Balance(3 * DOLLAR, 2 * DOLLAR, 0, 0)


def test_hold_beyond_the_balance_is_refused_with_the_numbers(move, balance):
    give(move, credit=2 * DOLLAR)
    with pytest.raises(Overdrawn) as caught:
        hold(move, 5 * DOLLAR)
    assert caught.value.available_nanos == 2 * DOLLAR
    assert balance() == Balance(0, 2 * DOLLAR, 0, 0)


def test_hold_with_an_overdraft_takes_cash_so_far_below_zero_and_no_farther(move, balance):
    hold(move, DOLLAR, overdraft_nanos=DOLLAR)
    assert balance() == Balance(-DOLLAR, 0, DOLLAR, 0)
    with pytest.raises(Overdrawn):
        hold(move, 1, job_id="ft-2", overdraft_nanos=DOLLAR)
    hold(move, 1, job_id="ft-2", overdraft_nanos=None)
    assert balance().available_nanos == -DOLLAR - 1


def test_withdraw_may_take_cash_below_zero_and_then_nothing_can_be_held(move, balance):
    give(move, cash=DOLLAR)
    hold(move, DOLLAR)
    move(ledger.withdraw, DOLLAR, key="dispute-1", cause=Cause("payment", "pay-1"), note="Disputed")
    assert balance().available_nanos == -DOLLAR
    with pytest.raises(Overdrawn):
        hold(move, 1, job_id="ft-2")


def test_same_operation_a_hundred_times_has_one_effect(move, balance, database):
    for _ in range(100):
        give(move, cash=3 * DOLLAR, credit=DOLLAR)
        hold(move, 2 * DOLLAR)
    for _ in range(100):
        move(ledger.resolve, "ft-1", DOLLAR)
        move(ledger.refund, "ft-1", DOLLAR, key="refund-1", reason="ours")
    assert balance() == Balance(3 * DOLLAR, DOLLAR, 0, 0)
    found = audit(database)
    assert (found.organizations, found.entries, found.problems) == (1, 5, [])


def test_same_key_with_another_amount_is_refused(move):
    give(move, cash=3 * DOLLAR)
    with pytest.raises(Conflict, match="pay-1 was used before"):
        give(move, cash=4 * DOLLAR)
    hold(move, DOLLAR)
    with pytest.raises(Conflict):
        hold(move, DOLLAR + 1)
    move(ledger.resolve, "ft-1", DOLLAR)
    with pytest.raises(Conflict):
        move(ledger.resolve, "ft-1", 0)


def test_key_of_one_jobs_refund_is_refused_for_another(move, balance):
    give(move, cash=3 * DOLLAR)
    for job_id in ("ft-1", "ft-2"):
        hold(move, DOLLAR, job_id=job_id)
        move(ledger.resolve, job_id, DOLLAR)
    move(ledger.refund, "ft-1", DOLLAR, key="ticket-17", reason="ours")
    with pytest.raises(Conflict, match=r"was used before, for another transfer: .* ft-1"):
        move(ledger.refund, "ft-2", DOLLAR, key="ticket-17", reason="ours")
    assert balance().spent_nanos == DOLLAR


def test_capture_of_more_than_is_held_is_refused(move, balance):
    give(move, cash=3 * DOLLAR)
    hold(move, DOLLAR)
    with pytest.raises(InvalidRequest, match=r"\$2\.00 cannot be captured of \$1\.00"):
        move(ledger.resolve, "ft-1", 2 * DOLLAR)
    assert balance().held_nanos == DOLLAR


@pytest.mark.parametrize("amount", [0, -1, 2**63, 1.5, float("nan"), "5", True, None])
def test_what_is_no_amount_is_refused(move, balance, amount):
    with pytest.raises(InvalidRequest, match="not an amount of money"):
        move(ledger.deposit, amount, key="x", cause=OPERATOR, note="x")
    assert balance() == Balance(0, 0, 0, 0)


def test_balance_that_does_not_fit_is_refused_and_nothing_moves(move, balance):
    move(ledger.deposit, MAX_NANOS, key="a", cause=OPERATOR, note="all of it")
    with pytest.raises(InvalidRequest, match="more than a ledger holds"):
        move(ledger.deposit, 1, key="b", cause=OPERATOR, note="and one")
    assert balance().cash_nanos == MAX_NANOS


def test_clock_that_was_far_ahead_for_a_moment_dates_one_entry_and_not_those_after_it(
    move, clock, database, organization
):
    clock.advance(timedelta(days=365).total_seconds())
    give(move, cash=3 * DOLLAR)
    clock.advance(timedelta(days=-365).total_seconds())
    hold(move, DOLLAR)
    assert audit(database).problems == []
    with database.read() as tx:
        assert ledger.list_entries(tx, organization)[-1].created_at == clock.now()


def test_clock_that_is_put_back_a_little_leaves_order_and_books_whole(move, clock, database, organization):
    give(move, cash=3 * DOLLAR)
    clock.advance(timedelta(minutes=-20).total_seconds())
    hold(move, DOLLAR)
    move(ledger.resolve, "ft-1", DOLLAR)
    assert audit(database).problems == []
    with database.read() as tx:
        times = [entry.created_at for entry in ledger.list_entries(tx, organization)]
    assert times == sorted(times)  # none falls into a month whose statement is closed


def test_concurrent_holds_pass_exactly_as_far_as_the_balance_goes(move, balance, database):
    give(move, cash=10 * DOLLAR)
    outcomes = []

    def try_one(number):
        try:
            hold(move, DOLLAR, job_id=f"ft-{number}")
            outcomes.append("held")
        except Overdrawn:
            outcomes.append("refused")

    threads = [threading.Thread(target=try_one, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count("held"), outcomes.count("refused")) == (10, 40)
    assert balance() == Balance(0, 0, 10 * DOLLAR, 0)
    assert audit(database).problems == []


def test_key_of_a_caller_never_meets_one_of_the_ledger(move, balance):
    move(ledger.deposit, DOLLAR, key="resolve:ft-1", cause=OPERATOR, note="A key that looks like the ledger's own")
    hold(move, DOLLAR)
    move(ledger.resolve, "ft-1", DOLLAR)
    assert balance() == Balance(0, 0, 0, DOLLAR)


def test_first_entries_of_an_organization_at_once_are_all_kept(move, balance, database):
    threads = [
        threading.Thread(
            target=move, args=(ledger.deposit, DOLLAR), kwargs={"key": f"pay-{n}", "cause": OPERATOR, "note": "x"}
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert balance().cash_nanos == 8 * DOLLAR
    assert audit(database).problems == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET note = 'nothing happened'",
        "DELETE FROM ledger_entries",
        "INSERT OR REPLACE INTO ledger_entries SELECT * FROM ledger_entries",  # SQLite's way round a trigger on DELETE
    ],
)
def test_database_refuses_to_change_an_entry(move, database, statement):
    give(move, cash=DOLLAR)
    if not database.is_sqlite:
        statement = statement.replace("INSERT OR REPLACE INTO ledger_entries SELECT * FROM", "TRUNCATE")
    with pytest.raises(DatabaseError, match="never changed or removed"), database.transaction() as tx:
        tx.execute(sa.text(statement))


def test_database_refuses_an_entry_that_is_not_balanced(move, database, organization):
    give(move, cash=DOLLAR)
    with pytest.raises(IntegrityError), database.transaction() as tx:
        tx.execute(
            sa.text(
                "INSERT INTO ledger_entries SELECT organization_id, 2, created_at, kind, 'other', cause_kind, cause_id,"
                " note, cash_nanos + 1, credit_nanos, held_nanos, spent_nanos, payments_nanos, adjustments_nanos,"
                " previous_hash, hash FROM ledger_entries"
            )
        )


def unlock(database):
    """Take the triggers away, as somebody who owns the database could."""
    with database.transaction() as tx:
        if database.is_sqlite:
            tx.execute(sa.text("DROP TRIGGER ledger_entries_no_update"))
            tx.execute(sa.text("DROP TRIGGER ledger_entries_no_delete"))
        else:
            tx.execute(sa.text("DROP TRIGGER ledger_entries_append_only ON ledger_entries"))


MAKE_ANOTHER = "INSERT INTO organizations SELECT 'org-2', name, created_at FROM organizations"


@pytest.mark.parametrize(
    ("statement", "seq", "message"),
    [
        ("UPDATE ledger_entries SET note = 'x' WHERE seq = 3", 3, "was altered"),
        (
            "UPDATE ledger_entries SET cash_nanos = cash_nanos + 1, payments_nanos = payments_nanos - 1 WHERE seq = 2",
            2,
            "was altered",
        ),
        ("UPDATE ledger_entries SET created_at = created_at + 1 WHERE seq = 1", 1, "was altered"),
        ("DELETE FROM ledger_entries WHERE seq = 2", 2, "is missing"),
        ("DELETE FROM ledger_entries WHERE seq = 11", 11, "is missing"),
        ("UPDATE ledger_accounts SET cash_nanos = cash_nanos + 1", None, "cash is kept as"),
        ("DELETE FROM holds", None, "the open holds sum to"),
        ("DELETE FROM ledger_accounts", None, "has no accounts"),
        ("UPDATE holds SET refunded_nanos = 0 WHERE job_id = 'ft-2'", None, "the hold of job ft-2 was altered"),
        ("UPDATE holds SET captured_nanos = 2 WHERE job_id = 'ft-2'", None, "the hold of job ft-2 was altered"),
        ("UPDATE holds SET credit_nanos = 1 WHERE job_id = 'ft-2'", None, "the hold of job ft-2 was altered"),
        (
            "UPDATE holds SET created_at = created_at - 1 WHERE job_id = 'ft-1'",
            None,
            "the hold of job ft-1 was altered",
        ),
        ("UPDATE holds SET resolved_at = resolved_at + 1 WHERE job_id = 'ft-2'", None, "job ft-2 was altered"),
        (
            "UPDATE holds SET captured_nanos = 0, resolved_at = created_at WHERE job_id = 'ft-free'",
            None,
            "the hold of job ft-free was altered",
        ),
        (
            "UPDATE holds SET captured_nanos = NULL, resolved_at = NULL WHERE job_id = 'ft-over'",
            None,
            "the hold of job ft-over was altered",
        ),
        ("DELETE FROM holds WHERE job_id = 'ft-2'", None, "the hold of job ft-2 is missing"),
        ("UPDATE holds SET job_id = 'ft-3' WHERE job_id = 'ft-2'", None, "the hold of job ft-2 is missing"),
        (
            f"{MAKE_ANOTHER}; UPDATE holds SET organization_id = 'org-2' WHERE job_id = 'ft-2'",
            None,
            "the hold of job ft-2 is missing",
        ),
        *(
            (f"UPDATE holds SET {change} WHERE job_id = 'ft-2'", None, "the hold of job ft-2 was altered")
            for change in (
                "project_id = 'proj-2'",
                "api_key_id = 'key-2'",
                "base_model = 'acme/other'",
                "method = 'dpo'",
                "training_type = 'Full'",
                "billed_tokens = billed_tokens + 1",
                "rate_nanos = 0",
                "price_version = 'free'",
                "currency = 'EUR'",
            )
        ),
    ],
)
def test_verify_names_the_first_entry_that_was_altered(move, database, organization, statement, seq, message):
    for number in range(1, 5):
        move(ledger.deposit, number, key=f"pay-{number}", cause=OPERATOR, note=f"payment {number}")
    hold(move, 3)
    hold(move, 3, job_id="ft-2")
    move(ledger.resolve, "ft-2", 3)
    move(ledger.refund, "ft-2", 1, key="refund-1", reason="ours")
    hold(move, 0, job_id="ft-free")
    hold(move, 0, job_id="ft-over")
    move(ledger.resolve, "ft-over", 0)
    assert audit(database).problems == []
    unlock(database)
    with database.transaction() as tx:
        for part in statement.split(";"):
            tx.execute(sa.text(part))
    (problem,) = audit(database).problems
    assert (problem.organization_id, problem.seq) == (organization, seq)
    assert message in problem.message


def test_time_of_another_zone_is_kept_as_utc_and_verified(database, organization, clock):
    elsewhere = clock.now().astimezone(timezone(timedelta(hours=5, minutes=30)))
    with database.transaction() as tx:
        ledger.grant(tx, organization, DOLLAR, key="x", cause=OPERATOR, note="x", now=elsewhere)
    assert audit(database).problems == []


def test_entries_of_one_organization_are_not_another_s(move, database, clock, organization):
    give(move, cash=DOLLAR)
    with database.transaction() as tx:
        other = make_principal(tx, now=clock.now(), dollars=0).organization_id
        ledger.grant(tx, other, DOLLAR, key="grant-1", cause=OPERATOR, note="Theirs", now=clock.now())
    with database.read() as tx:
        assert [one.note for one in ledger.list_entries(tx, organization)] == ["Paid by card"]
        assert [one.note for one in ledger.list_entries(tx, other)] == ["Theirs"]


def test_hold_of_a_job_tells_what_became_of_it(move, database):
    job_id = ids.new_id("ft")
    give(move, cash=DOLLAR)
    hold(move, DOLLAR, job_id=job_id)
    move(ledger.resolve, job_id, 7)
    with database.read() as tx:
        found = ledger.find_hold(tx, job_id)
    assert (found.amount_nanos, found.captured_nanos, found.refunded_nanos) == (DOLLAR, 7, 0)
