"""Refunds: the balance first, then the card; never more than there is, and back when the card does not take it."""

from __future__ import annotations

import pytest

from luthier.billing.payments import refunds
from luthier.errors import Conflict, InvalidRequest, NotFound, PaymentRequired, Unavailable, Unprocessable
from payments_desk import DOLLAR, make_processor


@pytest.fixture
def payment(desk):
    """A payment of $20."""
    desk.add_card()
    return desk.pay(20)


def test_refund_takes_the_balance_and_sends_it_to_the_card(desk, stripe, payment):
    view = desk.refund(payment.id, 5)
    assert (view.status, view.amount_nanos, view.is_external) == ("succeeded", 5 * DOLLAR, False)
    assert desk.cash == 15
    assert desk.get_payment(payment.id).refunded_nanos == 5 * DOLLAR
    assert [refund["amount"] for refund in stripe.refunds.values()] == [500]
    assert desk.refund(payment.id).amount_nanos == 15 * DOLLAR
    assert desk.cash == 0
    assert desk.list_notes()[1:] == [
        "Sent $5.00 back to the card: asked for",
        "Sent $15.00 back to the card: asked for",
    ]
    desk.assert_books_balance()


def test_refund_of_more_than_was_paid_is_refused(desk, stripe, payment):
    desk.refund(payment.id, 15)
    with pytest.raises(InvalidRequest, match=r"\$6\.00 cannot be refunded: \$5\.00 is left"):
        desk.refund(payment.id, 6)
    desk.refund(payment.id, 5)
    with pytest.raises(Conflict, match="nothing is left"):
        desk.refund(payment.id)
    assert sum(refund["amount"] for refund in stripe.refunds.values()) == 2000


@pytest.mark.parametrize("dollars", [0, -5, 5.001])
def test_refund_of_what_is_no_amount_in_cents_is_refused(desk, stripe, payment, dollars):
    with pytest.raises(InvalidRequest) as caught:
        desk.refund(payment.id, dollars)
    assert caught.value.code == "invalid_amount"
    assert (desk.cash, stripe.refunds) == (20, {})


def test_refund_of_what_is_spent_is_refused_unless_the_operator_insists(desk, payment):
    desk.spend(18)
    with pytest.raises(InvalidRequest, match=r"the available cash is \$2\.00"):
        desk.refund(payment.id, 20)
    desk.refund(payment.id, 20, is_forced=True)
    assert desk.cash == -18
    desk.assert_books_balance()


def test_refund_of_promotional_credit_is_refused(desk, payment):
    from luthier.billing import ledger
    from luthier.billing.ledger import Cause

    desk.spend(20)
    with desk.database.transaction() as tx:
        ledger.grant(
            tx,
            desk.organization_id,
            50 * DOLLAR,
            key="g",
            cause=Cause("operator", "x"),
            note="Welcome",
            now=desk.clock.now(),
        )
    with pytest.raises(InvalidRequest, match=r"the available cash is \$0\.00"):
        desk.refund(payment.id, 20)


def test_refund_a_hundred_times_with_one_key_is_one(desk, stripe, payment):
    assert len({desk.refund(payment.id, 5, key="r-1").id for _ in range(100)}) == 1
    assert (desk.cash, len(stripe.refunds)) == (15, 1)
    with pytest.raises(Unprocessable):
        desk.refund(payment.id, 6, key="r-1")


@pytest.mark.parametrize("fault", ["drop", "lost", "busy", "error", "lost_error", "hang"])
def test_refund_when_the_answer_is_lost_is_made_once_and_the_books_are_right(desk, stripe, payment, fault):
    desk.processor = make_processor(stripe, read_timeout_s=0.3)
    stripe.fail(fault, "/v1/refunds")
    view = desk.refund(payment.id, 5, key="r-1")
    assert (view.status, desk.cash) == ("created", 15)
    for _ in range(3):
        desk.settle()
    desk.settle(3700)
    (settled,) = desk.list_refunds(payment.id)
    if fault == "error":  # the same 500 for ever: nothing was sent, and nothing will be
        assert (settled.status, desk.cash, stripe.refunds) == ("failed", 20, {})
    else:
        assert (settled.status, desk.cash, len(stripe.refunds)) == ("succeeded", 15, 1)
    desk.assert_books_balance()


def test_refund_when_stripe_refuses_gives_the_balance_back_and_says_why(desk, stripe, payment):
    stripe.refund_elsewhere(next(iter(stripe.intents)), 2000)  # of which no webhook came yet
    with pytest.raises(Conflict, match="greater than the unrefunded amount"):
        desk.refund(payment.id, 5)
    assert desk.cash == 20
    assert desk.get_payment(payment.id).refunded_nanos == 0
    assert desk.list_refunds(payment.id)[0].status == "failed"
    desk.assert_books_balance()


def test_refund_that_is_under_way_is_followed_to_its_end(desk, stripe, payment):
    stripe.refunds_are_pending = True
    view = desk.refund(payment.id, 5)
    assert view.status == "created"
    stripe.end_refund(next(iter(stripe.refunds)), "succeeded")
    desk.settle(10)
    assert desk.list_refunds(payment.id)[0].status == "succeeded"
    assert desk.cash == 15


def test_refund_that_the_bank_sends_back_later_is_on_the_balance_again(desk, stripe, payment):
    desk.refund(payment.id, 5)
    stripe.end_refund(next(iter(stripe.refunds)), "failed")
    desk.deliver_all()
    assert desk.cash == 20
    (view,) = desk.list_refunds(payment.id)
    assert (view.status, view.failure_message) == ("failed", "expired or canceled card")
    desk.deliver(stripe.events[-1] | {"id": "evt_again"})
    assert desk.cash == 20
    desk.assert_books_balance()


def test_refund_made_at_stripe_is_taken_from_the_balance_once(desk, stripe, payment):
    desk.spend(18)
    stripe.refund_elsewhere(next(iter(stripe.intents)), 500)
    desk.deliver_all()
    for number in range(3):
        desk.deliver(stripe.events[-1] | {"id": f"evt_again_{number}"})
    assert desk.cash == -3
    (view,) = desk.list_refunds(payment.id)
    assert (view.is_external, view.status, view.amount_nanos) == (True, "succeeded", 5 * DOLLAR)
    desk.assert_books_balance()


def test_refund_of_a_payment_that_failed_or_is_unknown_is_refused(desk, payment):
    desk.add_card("pm_card_chargeCustomerFail")
    with pytest.raises(PaymentRequired):
        desk.pay(20, card_id=desk.list_cards()[1].id)
    failed = next(one for one in desk.list_payments() if one.status == "failed")
    with pytest.raises(Conflict, match="this one is failed"):
        desk.refund(failed.id)
    with pytest.raises(NotFound, match="pay-unknown"):
        desk.refund("pay-unknown")


@pytest.fixture
def given_up(desk, stripe, payment):
    """A refund of $15 that Stripe has made and did not show for so long that it was given up."""
    stripe.fail("lost", "/v1/refunds")
    desk.refund(payment.id, 15)
    hidden = dict(stripe.refunds)
    stripe.refunds.clear()
    desk.settle(3700)
    (view,) = desk.list_refunds(payment.id)
    assert (view.status, desk.cash) == ("failed", 20)
    stripe.refunds.update(hidden)
    return view


@pytest.mark.parametrize("is_pending", [False, True])
def test_refund_given_up_that_was_made_all_the_same_is_taken_from_the_balance_again(
    desk, stripe, payment, given_up, is_pending
):
    if is_pending:
        stripe.refunds[next(iter(stripe.refunds))]["status"] = "pending"
    for number in range(3):
        desk.deliver(stripe.events[-1] | {"id": f"evt_again_{number}"})
    (view,) = desk.list_refunds(payment.id)
    assert (view.status, view.failure_message) == ("created" if is_pending else "succeeded", None)
    assert (desk.cash, desk.get_payment(payment.id).refunded_nanos) == (5, 15 * DOLLAR)
    if is_pending:
        stripe.end_refund(next(iter(stripe.refunds)), "succeeded")
        desk.settle(10)
        assert (desk.list_refunds(payment.id)[0].status, desk.cash) == ("succeeded", 5)
    assert desk.list_notes()[-1] == "Sent $15.00 back to the card after all: asked for"
    desk.assert_books_balance()


def test_refund_given_up_and_made_that_the_bank_sends_back_is_on_the_balance_for_good(desk, stripe, payment, given_up):
    desk.deliver_all()
    ref = next(iter(stripe.refunds))
    older = desk.processor.fetch_refund(ref)
    stripe.end_refund(ref, "failed")
    desk.deliver_all()
    assert desk.cash == 20
    refunds.record(desk.database, given_up.id, older, now=desk.clock.now())
    assert (desk.list_refunds(payment.id)[0].status, desk.cash) == ("failed", 20)
    desk.assert_books_balance()


def test_refund_given_up_and_made_waits_for_another_of_the_payment_to_be_settled(desk, stripe, payment, given_up):
    stripe.fail("drop", "/v1/refunds")
    desk.refund(payment.id, 10)
    with pytest.raises(Unavailable):
        desk.deliver(stripe.events[-1])
    assert desk.cash == 10
    desk.settle()  # the second is refused: Stripe has sent $15 of $20 back
    assert desk.cash == 20
    assert desk.deliver(stripe.events[-1]) == "applied"
    assert (desk.cash, desk.get_payment(payment.id).refunded_nanos) == (5, 15 * DOLLAR)
    desk.assert_books_balance()
