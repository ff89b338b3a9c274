"""Whether money may be spent: the minimum, the balance with its credit line, and the limits of each scope."""

from __future__ import annotations

from dataclasses import replace

import pytest

import factories
from factories import POLICY, make_principal, make_purchase
from luthier.billing import funds, ledger, limits
from luthier.billing.policy import make_unlimited
from luthier.errors import InvalidRequest, PaymentRequired

DOLLAR = 1_000_000_000
STRIPE = replace(POLICY, processor="stripe")


@pytest.fixture
def who(database, clock):
    with database.transaction() as tx:
        return make_principal(tx, now=clock.now(), dollars=10)


@pytest.fixture
def hold(database, clock, who):
    """Hold for a job of the principal's key."""

    def run(dollars, job_id="ft-1", policy=STRIPE, **changes):
        scope = {"project_id": who.project_id, "api_key_id": who.api_key_id} | changes
        purchase = make_purchase(who.organization_id, dollars * DOLLAR, job_id=job_id, **scope)
        with database.transaction() as tx:
            return funds.hold(tx, purchase, policy=policy, now=clock.now())

    return run


@pytest.fixture
def room(database, clock, who):
    def read():
        ids = {"organization_id": who.organization_id, "project_id": who.project_id, "api_key_id": who.api_key_id}
        with database.read() as tx:
            return funds.get_room(tx, policy=STRIPE, now=clock.now(), **ids)

    return read


def limit(database, clock, who, scope, dollars):
    scope_id = {"organization": who.organization_id, "project": who.project_id, "key": who.api_key_id}[scope]
    with database.transaction() as tx:
        return limits.set_limit(tx, who.organization_id, scope, scope_id, dollars * DOLLAR, now=clock.now())


def test_minimum_when_balance_is_below_it_says_balance_missing_and_the_ways_out(database, clock):
    with database.transaction() as tx:
        poor = make_principal(tx, now=clock.now(), dollars=2).organization_id
        with pytest.raises(PaymentRequired) as caught:
            funds.require_minimum(tx, poor, policy=POLICY)
        assert caught.value.status == 402
        assert caught.value.code == "insufficient_balance"
        assert caught.value.message == (
            "the available balance is $2.00; uploads and jobs need at least $5.00: $3.00 is missing"
        )
        assert "luthier billing grant" in caught.value.hint
        with pytest.raises(PaymentRequired) as caught:
            funds.require_minimum(tx, poor, policy=STRIPE)
        for way in ("luthier billing cards add", "luthier billing pay", "luthier billing credit-limit"):
            assert way in caught.value.hint
        funds.require_minimum(tx, poor, policy=make_unlimited(POLICY))
        factories.give(tx, poor, 3 * DOLLAR, now=clock.now())
        funds.require_minimum(tx, poor, policy=POLICY)


def test_hold_beyond_the_balance_is_refused_with_the_numbers_and_holds_nothing(hold, room):
    with pytest.raises(PaymentRequired) as caught:
        hold(12)
    assert caught.value.code == "insufficient_balance"
    assert caught.value.message == "the price is $12.00; there is an available balance of $10.00: $2.00 is missing"
    assert room().available_nanos == 10 * DOLLAR


def test_credit_line_counts_once_a_card_is_on_file(database, clock, who, hold, room):
    with database.transaction() as tx:
        limits.set_credit_limit(tx, who.organization_id, 5 * DOLLAR, now=clock.now())
    assert room().spendable_nanos == 10 * DOLLAR
    with database.transaction() as tx:
        limits.set_card_on_file(tx, who.organization_id, has_card=True, now=clock.now())
    assert (room().credit_limit_nanos, room().spendable_nanos) == (5 * DOLLAR, 15 * DOLLAR)
    hold(14)
    with pytest.raises(PaymentRequired, match=r"balance of -\$4\.00 and a credit limit of \$5\.00: \$1\.00 is missing"):
        hold(2, job_id="ft-2")
    with database.transaction() as tx:
        limits.set_card_on_file(tx, who.organization_id, has_card=False, now=clock.now())
        assert limits.get_credit_line(tx, who.organization_id).limit_nanos == 5 * DOLLAR  # kept for the next card


def test_credit_line_needs_no_card_where_payments_are_manual(database, clock, who, hold):
    with database.transaction() as tx:
        limits.set_credit_limit(tx, who.organization_id, 5 * DOLLAR, now=clock.now())
        assert funds.get_usable_credit(tx, who.organization_id, policy=STRIPE) == 0
        assert funds.get_usable_credit(tx, who.organization_id, policy=POLICY) == 5 * DOLLAR
    hold(15, policy=POLICY)


@pytest.mark.parametrize("scope", limits.SCOPES)
def test_hold_beyond_a_monthly_limit_is_refused_by_its_scope(database, clock, who, hold, room, scope):
    limit(database, clock, who, scope, 4)
    hold(3)
    assert room().spendable_nanos == DOLLAR
    with pytest.raises(PaymentRequired) as caught:
        hold(2, job_id="ft-2")
    assert caught.value.code == "spending_limit_reached"
    assert scope.replace("key", "API key") in caught.value.message
    assert "$4.00, $1.00 is left" in caught.value.message
    hold(1, job_id="ft-3")


def test_limit_of_another_key_does_not_bind(database, clock, who, hold):
    limit(database, clock, who, "key", 1)
    assert hold(3, api_key_id="key-other").entry.amounts["held"] == 3 * DOLLAR
    with pytest.raises(PaymentRequired, match="the API key"):
        hold(3, job_id="ft-2")


def test_limit_counts_charges_net_of_refunds_and_what_is_held_in_this_month_only(database, clock, who, hold):
    limit(database, clock, who, "organization", 10)
    for number in range(3):
        hold(2, job_id=f"ft-{number}")
    with database.transaction() as tx:
        ledger.resolve(tx, "ft-0", 2 * DOLLAR, now=clock.now())
        ledger.resolve(tx, "ft-1", 1 * DOLLAR, now=clock.now())
        ledger.refund(tx, "ft-0", DOLLAR, key="r", reason="ours", now=clock.now())
    with database.read() as tx:
        (view,) = limits.list_limits(tx, who.organization_id, now=clock.now())
    assert (view.used_nanos, view.held_nanos, view.period) == (4 * DOLLAR, 2 * DOLLAR, "2026-01")
    clock.advance(31 * 86_400)
    with database.read() as tx:
        (view,) = limits.list_limits(tx, who.organization_id, now=clock.now())
    assert (view.used_nanos, view.held_nanos, view.period) == (2 * DOLLAR, 2 * DOLLAR, "2026-02")


def test_charge_of_a_wrong_clock_counts_in_its_own_month_only(database, clock, who, hold):
    limit(database, clock, who, "organization", 5)
    clock.advance(400 * 86_400)
    hold(4)
    with database.transaction() as tx:
        ledger.resolve(tx, "ft-1", 4 * DOLLAR, now=clock.now())
    clock.advance(-400 * 86_400)
    assert hold(4, job_id="ft-2").entry.amounts["held"] == 4 * DOLLAR
    with pytest.raises(PaymentRequired, match=r"\$1\.00 is left"):
        hold(4, job_id="ft-3")


def test_limit_that_is_taken_away_no_longer_binds(database, clock, who, hold):
    limit(database, clock, who, "key", 1)
    with pytest.raises(PaymentRequired, match="the API key"):
        hold(3)
    with database.transaction() as tx:
        limits.remove_limit(tx, "key", who.api_key_id)
        limits.remove_limit(tx, "key", who.api_key_id)
    assert hold(3).entry.amounts["held"] == 3 * DOLLAR


@pytest.mark.parametrize("nanos", [-1, 2**63])
def test_limit_that_is_no_amount_is_refused(database, clock, who, nanos):
    with database.transaction() as tx, pytest.raises(InvalidRequest, match="not a limit"):
        limits.set_limit(tx, who.organization_id, "key", who.api_key_id, nanos, now=clock.now())
    with database.transaction() as tx, pytest.raises(InvalidRequest, match="not a limit"):
        limits.set_credit_limit(tx, who.organization_id, nanos, now=clock.now())


def test_alerts_are_told_once_a_share_and_a_month(database, clock, who, hold):
    limit(database, clock, who, "project", 10)
    told = [
        [alert.percent for alert in hold(dollars, job_id=f"ft-{dollars}-{n}").alerts]
        for n, dollars in enumerate((4, 1, 1, 2, 2))
    ]
    assert told == [[], [50], [], [80], [100]]
    with database.read() as tx:
        kept = limits.list_alerts(tx, who.organization_id)
    assert sorted(alert.percent for alert in kept) == [50, 80, 100]
    assert {(alert.scope, alert.scope_id, alert.period) for alert in kept} == {("project", who.project_id, "2026-01")}


def test_alerts_are_told_when_a_limit_is_set_below_what_is_used_and_by_the_round_for_the_rest(
    database, clock, who, hold
):
    hold(9)
    limit(database, clock, who, "organization", 9)
    with database.read() as tx:
        assert {alert.percent for alert in limits.list_alerts(tx, who.organization_id)} == {50, 80, 100}
    clock.advance(31 * 86_400)  # what is held counts in the next month, too
    with database.transaction() as tx:
        limits.note_all_alerts(tx, now=clock.now())
        kept = limits.list_alerts(tx, who.organization_id)
    assert {alert.period for alert in kept} == {"2026-01", "2026-02"}


def test_alerts_are_told_again_when_the_limit_is_another(database, clock, who, hold):
    limit(database, clock, who, "organization", 4)
    assert [alert.percent for alert in hold(2).alerts] == [50]
    limit(database, clock, who, "organization", 6)
    assert [alert.percent for alert in hold(1, job_id="ft-2").alerts] == [50]


def test_disabled_billing_meters_and_refuses_nothing(database, clock, who, hold, room):
    limit(database, clock, who, "organization", 1)
    hold(50, policy=make_unlimited(POLICY))
    assert room().available_nanos == -40 * DOLLAR


def test_hold_that_is_repeated_is_one_even_where_no_room_is_left(hold, room):
    hold(10)
    hold(10)
    assert room().available_nanos == 0


def test_excess_picks_the_newest_jobs_until_it_is_covered(database, clock, who, hold):
    for number in range(4):
        hold(2, job_id=f"ft-{number}")
        clock.advance(1)
    with database.read() as tx:
        assert funds.find_excesses(tx, who.organization_id, policy=POLICY, now=clock.now()) == []
    limit(database, clock, who, "project", 5)
    with database.read() as tx:
        (excess,) = funds.find_excesses(tx, who.organization_id, policy=POLICY, now=clock.now())
        assert (excess.nanos, excess.scope) == (3 * DOLLAR, "project")
        assert funds.pick_newest(tx, who.organization_id, excess) == ["ft-3", "ft-2"]
