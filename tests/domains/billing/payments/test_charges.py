"""Payments: charged once whatever happens to the answer, and the balance gets them once."""

from __future__ import annotations

import threading

import pytest

from luthier.errors import Conflict, InvalidRequest, NotFound, PaymentRequired, Unprocessable
from payments_desk import DOLLAR, make_processor


@pytest.fixture
def payer(desk):
    """A desk with a card on file."""
    desk.add_card()
    return desk


def test_pay_when_card_is_good_charges_it_and_the_balance_has_the_amount(payer, stripe):
    view = payer.pay(20)
    assert (view.status, view.amount_nanos, view.card_label) == ("succeeded", 20 * DOLLAR, "visa ending in 4242")
    assert payer.cash == 20
    assert [amount for _, amount in stripe.charges] == [2000]
    assert payer.list_notes() == ["Paid $20.00 by visa ending in 4242"]
    payer.assert_books_balance()


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("pm_card_chargeCustomerFail", "Your card was declined"),
        ("pm_card_chargeCustomerPoor", "Your card has insufficient funds"),
    ],
)
def test_pay_when_card_is_declined_tells_the_bank_s_reason_and_a_way_out(desk, stripe, token, reason):
    desk.add_card(token)
    with pytest.raises(PaymentRequired, match=reason) as caught:
        desk.pay(20)
    assert (caught.value.code, caught.value.status) == ("card_declined", 402)
    assert "luthier billing cards add" in caught.value.hint
    assert (desk.cash, stripe.charges) == (0, [])
    assert [payment.status for payment in desk.list_payments()] == ["failed"]


def test_pay_without_a_card_says_how_to_add_one(desk):
    with pytest.raises(Conflict, match="no card to charge") as caught:
        desk.pay(20)
    assert "luthier billing cards add" in caught.value.hint


def test_pay_with_a_named_card_charges_that_one(payer):
    other = payer.add_card("pm_card_mastercard").card
    assert payer.pay(20, card_id=other.id).card_label == "mastercard ending in 4444"
    with pytest.raises(NotFound):
        payer.pay(20, card_id="card-unknown")


@pytest.mark.parametrize(
    "nanos",
    [
        0,
        -1,
        -20 * DOLLAR,
        float("nan"),
        20.0,
        "20",
        True,
        None,
        49 * DOLLAR // 100,
        DOLLAR + 1,
        1_000_000 * DOLLAR,
        2**63,
    ],
)
def test_pay_of_what_no_card_can_be_charged_is_refused_before_anything(payer, stripe, nanos):
    from luthier.billing.payments import charges

    asked = len(stripe.requests)
    with pytest.raises(InvalidRequest) as caught:
        charges.pay(
            payer.database,
            payer.processor,
            payer.organization_id,
            nanos,
            return_url="https://x.example",
            request_key=None,
            policy=payer.policy,
            now=payer.clock.now(),
        )
    assert (caught.value.code, caught.value.param) == ("invalid_amount", "amount")
    assert caught.value.hint
    assert len(stripe.requests) == asked
    assert payer.list_payments() == []


@pytest.mark.parametrize("dollars", [0.50, 999_999.99])
def test_pay_of_the_least_and_the_most_is_taken(payer, dollars):
    assert payer.pay(dollars).amount_nanos == round(dollars * DOLLAR)


def test_pay_a_hundred_times_with_one_key_charges_once(payer, stripe):
    views = {payer.pay(20, key="order-1").id for _ in range(100)}
    assert len(views) == 1
    assert (payer.cash, stripe.count_charges()) == (20, 1)
    with pytest.raises(Unprocessable, match="another payment: order-1"):
        payer.pay(21, key="order-1")


def test_pay_with_one_key_from_many_threads_charges_once(payer, stripe):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(payer.pay(20, key="order-1"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({view.id for view in answers}) == 1
    assert len(answers) == 20
    assert (payer.cash, stripe.count_charges()) == (20, 1)


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_pay_with_a_key_of_a_bad_length_is_refused(payer, key):
    with pytest.raises(InvalidRequest, match="1 to 255 characters"):
        payer.pay(20, key=key)


def test_pay_when_declined_and_repeated_with_its_key_tells_the_same(desk, stripe):
    desk.add_card("pm_card_chargeCustomerFail")
    for _ in range(2):
        with pytest.raises(PaymentRequired, match="declined"):
            desk.pay(20, key="order-1")
    assert len(stripe.intents) == 1


@pytest.mark.parametrize("fault", ["drop", "lost", "busy", "error", "lost_error", "hang"])
def test_payment_when_the_answer_is_lost_is_charged_and_recorded_once(payer, stripe, fault):
    payer.processor = make_processor(stripe, read_timeout_s=0.3)
    stripe.fail(fault, "/v1/payment_intents")
    view = payer.pay(20, key="order-1")
    assert (view.status, payer.cash) == ("created", 0)
    assert payer.pay(20, key="order-1") == view
    for _ in range(3):
        payer.settle()
    if fault == "error":  # Stripe gives the same 500 for the key for ever: nothing was charged, and nothing will be
        assert payer.get_payment(view.id).status == "created"
        payer.settle(3700)
        assert payer.get_payment(view.id).failure_code == "not_charged"
        assert (payer.cash, stripe.count_charges()) == (0, 0)
    else:
        assert payer.get_payment(view.id).status == "succeeded"
        assert (payer.cash, stripe.count_charges()) == (20, 1)
    payer.assert_books_balance()


@pytest.mark.parametrize("fault", ["drop", "lost", "error"])
def test_payment_when_one_try_fails_is_repeated_by_the_library_and_charged_once(payer, stripe, fault):
    payer.processor = make_processor(stripe, retries=1)
    stripe.fail(fault, "/v1/payment_intents")
    view = payer.pay(20)
    assert view.status == ("created" if fault == "error" else "succeeded")
    keys = [key for method, path, key in stripe.requests if (method, path) == ("POST", "/v1/payment_intents")]
    assert keys == [f"luthier-{view.id}"] * 2
    assert stripe.count_charges() == (0 if fault == "error" else 1)


def test_payment_lost_for_longer_than_keys_are_kept_is_found_and_not_charged_again(payer, stripe):
    stripe.fail("lost", "/v1/payment_intents")
    view = payer.pay(20)
    stripe.forget_keys()
    payer.settle(2 * 86_400)
    assert payer.get_payment(view.id).status == "succeeded"
    assert (payer.cash, stripe.count_charges()) == (20, 1)


def test_payment_that_never_arrived_is_not_charged_late(payer, stripe):
    stripe.fail("drop", "/v1/payment_intents")
    view = payer.pay(20)
    payer.settle(2 * 86_400)
    assert payer.get_payment(view.id).failure_code == "not_charged"
    assert stripe.charges == []


def test_payment_when_the_clock_is_put_back_is_settled_all_the_same(payer, stripe):
    payer.clock.advance(2 * 86_400)
    stripe.fail("lost", "/v1/payment_intents")
    view = payer.pay(20)
    payer.settle(-2 * 86_400)
    assert payer.get_payment(view.id).status == "succeeded"


def test_payment_when_stripe_is_away_stays_open_and_is_asked_about_less_and_less(payer, stripe):
    stripe.fail("drop", "/v1/payment_intents", times=1000)
    view = payer.pay(20)
    before = len(stripe.requests)
    for _ in range(600):
        payer.settle(1)
    assert len(stripe.requests) - before < 15
    stripe.clear_faults()
    payer.settle(900)
    assert payer.get_payment(view.id).status == "succeeded"


def test_payment_that_needs_its_owner_names_the_page_and_is_taken_once_confirmed(desk, stripe):
    setup = desk.add_card("pm_card_authenticationRequired")
    stripe.finish_setup(setup.action_url.rpartition("/")[2])
    desk.check_setup(setup.id)
    view = desk.pay(20, key="order-1")
    assert (view.status, desk.cash) == ("needs_action", 0)
    assert view.action_url.startswith("https://hooks.stripe.com/")
    assert desk.pay(20, key="order-1").action_url == view.action_url
    ref = view.action_url.rpartition("/")[2]
    stripe.confirm(ref)
    desk.settle(10)
    settled = desk.get_payment(view.id)
    assert (settled.status, settled.action_url, desk.cash) == ("succeeded", None, 20)
    assert stripe.count_charges() == 1


def test_payment_that_its_owner_refuses_or_forgets_is_not_taken(desk, stripe):
    setup = desk.add_card("pm_card_authenticationRequired")
    stripe.finish_setup(setup.action_url.rpartition("/")[2])
    desk.check_setup(setup.id)
    refused, forgotten = desk.pay(20), desk.pay(30)
    stripe.confirm(refused.action_url.rpartition("/")[2], allowed=False)
    desk.settle(10)
    assert desk.get_payment(refused.id).status == "failed"
    desk.settle(2 * 86_400)
    settled = desk.get_payment(forgotten.id)
    assert (settled.status, settled.failure_code) == ("canceled", "not_confirmed")
    assert [intent["status"] for intent in stripe.intents.values()] == ["requires_payment_method", "canceled"]
    assert desk.cash == 0


def test_payment_of_another_organization_is_not_found(payer, database, clock):
    from luthier.accounts import service as accounts

    view = payer.pay(20)
    with database.transaction() as tx:
        payer.organization_id = accounts.create_organization(tx, name="Other", now=clock.now())
    with pytest.raises(NotFound, match=view.id):
        payer.get_payment(view.id)
    assert payer.list_payments() == []


def test_payment_when_stripe_does_not_accept_our_key_stays_open_and_tells_no_secret(payer, stripe, capsys):
    stripe.secret_key = "sk_test_another0123456789"
    assert payer.pay(20).status == "created"
    captured = capsys.readouterr()
    assert "does not accept" in captured.out + captured.err
    assert "sk_test_" not in captured.out + captured.err
