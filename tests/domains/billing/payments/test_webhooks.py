"""Webhooks: forged, repeated, late, out of order, about strangers; and disputes, which come by them alone."""

from __future__ import annotations

import json
import time
from datetime import timedelta

import pytest

from luthier.billing.payments import webhooks
from luthier.errors import Conflict, InvalidRequest, Unavailable
from payments_desk import DOLLAR
from stripe_simulator import Simulator


@pytest.fixture
def payment(desk):
    """A payment of $20 of which every webhook came."""
    desk.add_card()
    view = desk.pay(20)
    desk.deliver_all()
    return view


def get_ref(stripe) -> str:
    return next(iter(stripe.intents))


def test_webhook_when_it_comes_three_times_has_one_effect(desk, stripe):
    desk.add_card()
    stripe.fail("lost", "/v1/payment_intents")
    desk.pay(20)
    event = next(one for one in stripe.events if one["type"] == "payment_intent.succeeded")
    assert [desk.deliver(event) for _ in range(3)] == ["applied", "known", "known"]
    assert (desk.cash, stripe.count_charges()) == (20, 1)
    assert len(desk.list_notes()) == 1
    desk.settle()
    assert desk.cash == 20


def make_forgeries():
    event = {
        "id": "evt_forged",
        "object": "event",
        "type": "payment_intent.succeeded",
        "data": {"object": {"object": "payment_intent", "id": "pi_x"}},
    }
    signer = Simulator()
    body, good = signer.sign(event)
    return {
        "no header": (body, None),
        "empty header": (body, ""),
        "not a header": (body, "hello"),
        "another secret": signer.sign(event, secret="whsec_other"),
        "another body": (body.replace(b"pi_x", b"pi_y"), good),
        "five minutes old": signer.sign(event, at=time.time() - 301),
        "another scheme": (body, good.replace("v1=", "v0=")),
        "not ASCII": (body, good.split("v1=", maxsplit=1)[0] + "v1=\u00e9"),
        "no time": (body, good.partition(",")[2]),
        "time not a number": (body, "t=now," + good.partition(",")[2]),
        "not UTF-8": (b"\xff\xfe", good),
        "not JSON": _sign_raw(signer, b"hello"),
        "not an event": _sign_raw(signer, b"[]"),
        "no object": _sign_raw(signer, b'{"id": "evt_1", "type": "x", "data": {}}'),
        "no id": _sign_raw(signer, b'{"type": "x", "data": {"object": {}}}'),
    }


def _sign_raw(signer, body):
    import hashlib
    import hmac

    stamp = str(int(time.time()))
    digest = hmac.new(signer.webhook_secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return body, f"t={stamp},v1={digest}"


@pytest.mark.parametrize("name", list(make_forgeries()))
def test_webhook_that_stripe_did_not_send_is_refused_and_nothing_is_asked(desk, stripe, name):
    body, signature = make_forgeries()[name]
    with pytest.raises(InvalidRequest) as caught:
        desk.receive(body, signature)
    assert (caught.value.code, caught.value.status) == ("invalid_signature", 400)
    assert stripe.webhook_secret not in caught.value.message + caught.value.hint
    assert stripe.requests == []


def test_webhook_whose_body_lies_changes_nothing_because_the_truth_is_fetched(desk, stripe):
    desk.add_card("pm_card_chargeCustomerPoor")
    with pytest.raises(Exception, match="insufficient funds"):
        desk.pay(20)
    event = json.loads(json.dumps(stripe.events[-1]))
    event["type"], event["data"]["object"]["status"] = "payment_intent.succeeded", "succeeded"
    desk.deliver(event)
    assert (desk.cash, desk.list_payments()[0].status) == (0, "failed")


def test_webhooks_in_reverse_order_bring_the_state_of_now(desk, stripe):
    setup = desk.add_card("pm_card_authenticationRequired")
    stripe.finish_setup(setup.action_url.rpartition("/")[2])
    desk.check_setup(setup.id)
    view = desk.pay(20)
    stripe.confirm(get_ref(stripe))
    dispute = stripe.open_dispute(get_ref(stripe))
    stripe.move_dispute(dispute, "won")
    for event in stripe.events[::-1]:
        desk.deliver(event)
    assert (desk.get_payment(view.id).status, desk.cash) == ("succeeded", 20)
    assert [one.status for one in desk.list_disputes()] == ["won"]
    desk.assert_books_balance()


@pytest.mark.parametrize("kind", ["payment_intent", "charge", "refund", "dispute", "setup_intent", "checkout.session"])
def test_webhook_about_a_stranger_is_acknowledged_and_ignored(desk, stripe, kind):
    thing = {"object": kind, "id": "x_stranger", "payment_intent": "pi_stranger"}
    assert desk.deliver({"id": f"evt_{kind}", "type": f"{kind}.updated", "data": {"object": thing}}) == "ignored"
    assert desk.deliver({"id": f"evt_{kind}", "type": f"{kind}.updated", "data": {"object": thing}}) == "known"


def test_webhook_of_a_kind_that_nobody_uses_is_ignored_without_a_call(desk, stripe):
    event = {"id": "evt_1", "type": "product.created", "data": {"object": {"object": "product", "id": "prod_1"}}}
    assert desk.deliver(event) == "ignored"
    assert stripe.requests == []


def test_webhook_when_stripe_cannot_be_asked_is_to_be_sent_again(desk, stripe):
    desk.add_card()
    stripe.fail("lost", "/v1/payment_intents")
    desk.pay(20)
    stripe.fail("drop", "/v1/payment_intents")
    with pytest.raises(Unavailable) as caught:
        desk.deliver(stripe.events[-1])
    assert (caught.value.code, caught.value.status) == ("webhook_not_applied", 503)
    assert desk.deliver(stripe.events[-1]) == "applied"
    assert desk.cash == 20


def test_webhook_of_a_payment_given_up_says_it_was_charged_and_the_balance_has_it(desk, stripe):
    desk.add_card()
    stripe.fail("lost", "/v1/payment_intents")
    view = desk.pay(20)
    hidden = dict(stripe.intents)
    stripe.intents.clear()
    desk.settle(2 * 86_400)
    assert desk.get_payment(view.id).status == "failed"
    stripe.intents.update(hidden)
    desk.deliver(stripe.events[-1])
    assert (desk.get_payment(view.id).status, desk.cash) == ("succeeded", 20)
    assert desk.get_payment(view.id).failure_message is None


def test_webhook_of_a_saved_card_brings_it(desk, stripe):
    hosted, page = desk.begin_setup(is_hosted=True), desk.begin_setup(is_hosted=False)
    stripe.finish_session(hosted.action_url.rpartition("/")[2], "pm_card_mastercard")
    stripe.finish_setup(page.client_secret.partition("_secret_")[0])
    assert desk.deliver_all() == ["applied"] * 3
    assert sorted(card.last4 for card in desk.list_cards()) == ["4242", "4444"]


def save_bank_account(stripe, setup):
    """Let Stripe save a bank account by a SetupIntent, and tell of it."""
    account = {"id": "pm_bank", "object": "payment_method", "type": "us_bank_account", "customer": "cus_other"}
    stripe.methods["pm_bank"] = account | {"us_bank_account": {"last4": "6789"}}
    stripe.setups[setup["id"]] = setup | {"status": "succeeded", "payment_method": "pm_bank"}
    return {
        "id": f"evt_{setup['id']}",
        "type": "setup_intent.succeeded",
        "data": {"object": {"object": "setup_intent", "id": setup["id"]}},
    }


def test_webhook_of_a_stranger_s_bank_account_is_acknowledged_and_ignored(desk, stripe):
    event = save_bank_account(stripe, {"id": "seti_bank", "object": "setup_intent", "metadata": {}})
    assert desk.deliver(event) == "ignored"
    assert desk.list_cards() == []


def test_webhook_of_a_stranger_s_card_is_ignored_before_its_details_are_read(desk, stripe):
    event = save_bank_account(stripe, {"id": "seti_odd", "object": "setup_intent", "metadata": {}})
    stripe.methods["pm_bank"] |= {"type": "card", "card": {"brand": None}}
    assert desk.deliver(event) == "ignored"


def test_webhook_of_ours_that_saved_no_card_ends_the_setup_and_saves_nothing(desk, stripe):
    view = desk.begin_setup(is_hosted=False)
    event = save_bank_account(stripe, next(iter(stripe.setups.values())))
    assert desk.deliver(event) == "applied"
    settled = desk.check_setup(view.id)
    assert (settled.status, settled.failure_message) == ("failed", "only cards can be saved; add one")
    assert desk.list_cards() == []


def test_webhook_of_a_card_detached_at_stripe_removes_it(desk, stripe):
    desk.add_card()
    stripe.detach_elsewhere(next(iter(stripe.methods)))
    desk.deliver_all()
    assert desk.list_cards() == []


def test_dispute_takes_the_balance_below_zero_and_a_won_one_gives_it_back(desk, stripe, payment):
    desk.spend(15)
    dispute = stripe.open_dispute(get_ref(stripe))
    desk.deliver_all()
    assert desk.balance.available_nanos == -15 * DOLLAR
    assert desk.get_payment(payment.id).disputed_nanos == 20 * DOLLAR
    with pytest.raises(Conflict, match="nothing is left"):
        desk.refund(payment.id, is_forced=True)
    stripe.move_dispute(dispute, "under_review")
    desk.deliver_all()
    assert desk.cash == -15
    stripe.move_dispute(dispute, "won")
    desk.deliver_all()
    assert (desk.cash, desk.get_payment(payment.id).disputed_nanos) == (5, 0)
    assert desk.list_notes()[-2:] == [
        "Took $20.00: the card's owner disputes the payment (fraudulent)",
        "Gave $20.00 back: the dispute ended as won",
    ]
    desk.assert_books_balance()


def test_dispute_that_is_lost_stays_taken_and_an_appeal_that_is_won_gives_it_back(desk, stripe, payment):
    dispute = stripe.open_dispute(get_ref(stripe), amount=500)
    for status, cash in [("lost", 15), ("appeal_under_review", 15), ("won", 20), ("lost", 15)]:
        stripe.move_dispute(dispute, status)
        desk.deliver_all()
        assert desk.cash == cash, status
    desk.assert_books_balance()


def test_inquiry_takes_no_money_until_it_becomes_a_dispute(desk, stripe, payment):
    dispute = stripe.open_dispute(get_ref(stripe), status="warning_needs_response")
    desk.deliver_all()
    assert (desk.cash, desk.list_disputes()[0].taken_nanos) == (20, 0)
    stripe.move_dispute(dispute, "needs_response")
    desk.deliver_all()
    assert (desk.cash, desk.list_disputes()[0].taken_nanos) == (0, 20 * DOLLAR)


def test_dispute_with_a_status_of_tomorrow_is_judged_by_the_money_it_moved(desk, stripe, payment):
    dispute = stripe.open_dispute(get_ref(stripe), status="prevented")
    desk.deliver_all()
    assert desk.cash == 20
    stripe.disputes[dispute]["balance_transactions"] = [{"amount": -2000}]
    stripe.move_dispute(dispute, "something_new")
    desk.deliver_all()
    assert desk.cash == 0


def test_dispute_fetched_before_another_recorded_newer_news_does_not_undo_it(desk, stripe, payment):
    from luthier.billing.payments import disputes

    dispute = stripe.open_dispute(get_ref(stripe))

    class Slow:
        """Fetches, and lets another webhook be dealt with before it answers."""

        def fetch_dispute(self, ref):
            state = desk.processor.fetch_dispute(ref)
            if state.status == "needs_response":
                stripe.move_dispute(dispute, "won")
                desk.deliver_all()
            return state

    disputes.refresh(desk.database, Slow(), payment.id, dispute, now=desk.clock.now())
    assert (desk.cash, desk.list_disputes()[0].status) == (20, "won")


def test_dispute_before_any_news_of_its_payment_settles_both(desk, stripe):
    desk.add_card()
    stripe.fail("lost", "/v1/payment_intents")
    view = desk.pay(20)
    stripe.open_dispute(get_ref(stripe))
    assert desk.deliver(stripe.events[-1]) == "applied"
    assert desk.get_payment(view.id).status == "succeeded"
    assert desk.cash == 0
    desk.assert_books_balance()


def test_dispute_switches_automatic_recharging_off(desk, stripe, payment):
    desk.set_recharge(10, 50)
    stripe.open_dispute(get_ref(stripe))
    desk.deliver_all()
    assert desk.run_recharge() == 0
    view = desk.find_recharge()
    assert (view.is_enabled, view.notice) == (False, "it was switched off: the card's owner disputes a payment")
    assert (desk.cash, stripe.count_charges()) == (0, 1)


def test_payment_copied_at_stripe_with_our_id_is_not_taken_for_ours(desk, stripe, payment):
    copy = stripe.intents[get_ref(stripe)] | {"id": "pi_copy"}
    stripe.intents["pi_copy"] = copy
    event = {"id": "evt_copy", "type": "payment_intent.succeeded", "data": {"object": copy}}
    assert desk.deliver(event) == "ignored"
    assert desk.cash == 20


def test_old_webhooks_are_forgotten(desk, stripe, payment):
    later = desk.clock.now() + timedelta(days=29)
    assert webhooks.forget_old(desk.database, now=later) == 0
    assert webhooks.forget_old(desk.database, now=later + timedelta(days=2)) == len(stripe.events)
