"""Automatic recharging: one charge, never two at once, switched off after three failures."""

from __future__ import annotations

import threading

import pytest

from luthier.billing.payments import recharge
from luthier.errors import Conflict, InvalidRequest
from payments_desk import DOLLAR


@pytest.fixture
def payer(desk):
    """A desk with a card, recharged from below $10 up to $50."""
    desk.add_card()
    desk.set_recharge(10, 50)
    return desk


def test_recharge_when_the_balance_is_below_the_threshold_charges_what_is_missing(payer, stripe):
    assert payer.run_recharge() == 1
    assert (payer.cash, stripe.count_charges()) == (50, 1)
    assert payer.list_notes() == ["Recharged by itself $50.00 by visa ending in 4242"]
    payer.spend(40)
    assert payer.run_recharge() == 0  # ten dollars are not below ten
    payer.spend(0.004)
    assert payer.run_recharge() == 1
    assert payer.cash == 50.006  # cards know no fraction of a cent
    assert all(payment.is_automatic for payment in payer.list_payments())
    payer.assert_books_balance()


@pytest.mark.parametrize(
    ("threshold", "target", "param"),
    [(0, 50, "threshold"), (-1, 50, "threshold"), (10, 10, "target"), (10, 5, "target"), (10.001, 50, "threshold")],
)
def test_recharge_with_amounts_that_make_no_sense_is_refused(payer, threshold, target, param):
    with pytest.raises(InvalidRequest) as caught:
        payer.set_recharge(threshold, target)
    assert (caught.value.code, caught.value.param) == ("invalid_amount", param)


def test_recharge_without_a_card_cannot_be_set(desk):
    with pytest.raises(Conflict, match="no card to charge"):
        desk.set_recharge(10, 50)
    assert desk.find_recharge() is None


def test_recharge_when_switched_off_charges_nothing(payer, stripe):
    with payer.database.transaction() as tx:
        assert not recharge.switch_off(tx, payer.organization_id).is_enabled
    assert payer.run_recharge() == 0
    assert stripe.charges == []


def test_recharge_from_many_threads_charges_once(payer, stripe):
    started = threading.Barrier(8)
    counts = []

    def run():
        started.wait()
        counts.append(payer.run_recharge())

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 1
    assert (payer.cash, stripe.count_charges()) == (50, 1)


def test_recharge_while_a_charge_is_under_way_begins_no_other(payer, stripe):
    stripe.fail("lost", "/v1/payment_intents")
    assert payer.run_recharge() == 0
    for _ in range(5):
        assert payer.run_recharge() == 0
    assert len(payer.list_payments()) == 1
    payer.settle()
    payer.run_recharge()
    assert (payer.cash, stripe.count_charges()) == (50, 1)


def test_recharge_that_fails_three_times_is_switched_off_with_the_reason(desk, stripe):
    desk.add_card("pm_card_chargeCustomerPoor")
    desk.set_recharge(10, 50)
    for number in range(1, 4):
        desk.run_recharge()
        assert len(desk.list_payments()) == number
        assert f"failed {number} of 3 times" in desk.find_recharge().notice
        desk.run_recharge()  # too early for another
        assert len(desk.list_payments()) == number
        desk.clock.advance(601)
    view = desk.find_recharge()
    assert (view.is_enabled, view.failures) == (False, 3)
    assert view.notice == (
        "it was switched off after 3 failures in a row; the last: $50.00, Your card has insufficient funds"
    )
    desk.run_recharge()
    assert (len(stripe.intents), stripe.charges) == (3, [])
    assert desk.set_recharge(10, 50).failures == 0


def test_recharge_when_the_bank_wants_its_owner_there_fails_and_says_so(desk, stripe):
    setup = desk.add_card("pm_card_authenticationRequired")
    stripe.finish_setup(setup.action_url.rpartition("/")[2])
    desk.check_setup(setup.id)
    desk.set_recharge(10, 50)
    desk.run_recharge()
    (payment,) = desk.list_payments()
    assert (payment.status, payment.failure_code) == ("failed", "authentication_required")
    assert "requires authentication" in desk.find_recharge().notice


def test_recharge_when_the_card_was_removed_is_switched_off(payer):
    payer.remove_card(payer.list_cards()[0].id)
    payer.run_recharge()
    view = payer.find_recharge()
    assert not view.is_enabled
    assert "no card to charge" in view.notice


def test_recharge_of_a_tiny_amount_charges_the_least_that_can_be(payer, stripe):
    payer.pay(49.90)
    payer.set_recharge(49.99, 50)
    payer.run_recharge()
    assert stripe.charges[-1][1] == 50
    assert payer.balance.cash_nanos == 50_400_000_000


def test_recharge_where_billing_is_off_charges_nothing(payer, stripe):
    from luthier.billing.policy import make_unlimited

    payer.policy = make_unlimited(payer.policy)
    assert payer.run_recharge() == 0
    assert stripe.charges == []
    assert payer.find_recharge().threshold_nanos == 10 * DOLLAR
