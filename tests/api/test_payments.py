"""Cards, payments, refunds and automatic recharging over HTTP: the real app, Stripe's own library, a Stripe on loopback."""

from __future__ import annotations

import pytest

from payments_desk import make_settings
from stripe_simulator import Simulator


@pytest.fixture
def stripe():
    """The simulator, running."""
    with Simulator().running() as simulator:
        yield simulator


@pytest.fixture
def settings(home, stripe):
    """Settings of a server that takes payments through the simulator."""
    return make_settings(home, stripe)


def call(client, method, path, body=None, *, status=200, **headers):
    response = client.request(method, f"/api/billing/{path}", json=body, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


@pytest.fixture
def card(client):
    """A saved card."""
    return call(client, "POST", "cards", {"payment_method": "pm_card_visa"}, status=201)["card"]


def test_card_when_added_by_token_then_it_is_listed_default_and_without_its_number(client, service, card):
    assert (card["brand"], card["last4"], card["is_default"]) == ("visa", "4242", True)
    service.clock.advance(1)
    second = call(client, "POST", "cards", {"payment_method": "pm_card_mastercard"}, status=201)["card"]
    assert call(client, "PUT", f"cards/{second['id']}/default")["is_default"] is True
    assert [one["is_default"] for one in call(client, "GET", "cards")["data"]] == [False, True]
    assert call(client, "DELETE", f"cards/{second['id']}")["removed_at"]
    assert [one["id"] for one in call(client, "GET", "cards")["data"]] == [card["id"]]
    assert call(client, "GET", "balance")["has_card"] is True


def test_card_when_declined_then_402_with_the_banks_reason(client):
    error = call(client, "POST", "cards", {"payment_method": "pm_card_chargeDeclined"}, status=402)["error"]
    assert error["code"] == "card_declined"
    assert "declined" in error["message"]


def test_card_when_its_number_is_sent_then_it_is_refused_and_told_nowhere(client):
    response = client.post("/api/billing/cards", json={"payment_method": "4242424242424242"})
    assert response.status_code == 400
    assert "4242" not in response.text


def test_setup_when_hosted_then_its_page_is_named_and_the_card_is_there_afterwards(client, stripe, service):
    setup = call(client, "POST", "cards/setups", {}, status=201)
    assert setup["action_url"].startswith("http")
    assert setup["client_secret"] is None
    stripe.finish_session(next(iter(stripe.sessions)))
    done = call(client, "GET", f"cards/setups/{setup['id']}")
    assert (done["status"], done["card"]["last4"]) == ("succeeded", "4242")
    page = call(client, "POST", "cards/setups", {"hosted": False}, status=201)
    assert page["client_secret"]
    assert call(client, "GET", f"cards/setups/{page['id']}")["client_secret"] is None


def test_payment_when_sent_three_times_with_one_key_then_the_card_is_charged_once(client, stripe, card):
    answers = [
        call(client, "POST", "payments", {"amount": "20.50"}, status=201, **{"Idempotency-Key": "k-1"})
        for _ in range(3)
    ]
    assert len({answer["id"] for answer in answers}) == 1
    assert [amount for _customer, amount in stripe.charges] == [2050]
    assert (answers[0]["status"], answers[0]["amount"], answers[0]["card"]) == (
        "succeeded", "20.50", "visa ending in 4242",
    )  # fmt: skip
    assert call(client, "GET", "balance")["cash"] == "20.50"
    assert [one["id"] for one in call(client, "GET", "payments")["data"]] == [answers[0]["id"]]
    text = call(client, "GET", "statement")["data"][-1]["text"]
    assert text == "Paid $20.50 by visa ending in 4242"
    other = call(client, "POST", "payments", {"amount": "21"}, status=422, **{"Idempotency-Key": "k-1"})
    assert other["error"]["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("amount", ["-1", "0", "NaN", "0.001", "0.49", "1000000", "twenty", "0.0000000001"])
def test_payment_when_the_amount_is_none_that_a_card_can_be_charged_then_nothing_is_charged(
    client, stripe, card, amount
):
    error = call(client, "POST", "payments", {"amount": amount}, status=400)["error"]
    assert (error["code"], error["param"]) == ("invalid_amount", "amount")
    assert error["hint"]
    assert stripe.charges == []


def test_payment_when_there_is_no_card_then_it_says_how_to_add_one(client):
    error = call(client, "POST", "payments", {"amount": "20"}, status=409)["error"]
    assert error["code"] == "no_card"
    assert "luthier billing cards add" in error["hint"]


def test_payment_when_declined_then_402_and_when_its_owner_must_confirm_then_there_is_a_page(client, stripe):
    declined = call(client, "POST", "cards", {"payment_method": "pm_card_chargeCustomerFail"}, status=201)["card"]
    body = {"amount": "20", "card_id": declined["id"]}
    assert call(client, "POST", "payments", body, status=402)["error"]["code"] == "card_declined"
    begun = call(client, "POST", "cards", {"payment_method": "pm_card_authenticationRequired"}, status=201)
    stripe.finish_setup(next(ref for ref, one in stripe.setups.items() if one["status"] == "requires_action"))
    careful = call(client, "GET", f"cards/setups/{begun['id']}")["card"]
    payment = call(client, "POST", "payments", {"amount": "20", "card_id": careful["id"]}, status=201)
    assert (payment["status"], bool(payment["action_url"])) == ("needs_action", True)
    stripe.confirm(next(ref for ref, one in stripe.intents.items() if one["status"] == "requires_action"))
    assert call(client, "GET", f"payments/{payment['id']}")["status"] == "succeeded"
    assert call(client, "GET", "balance")["cash"] == "20.00"


def test_refund_when_more_than_is_left_then_it_is_refused_else_the_card_gets_it(client, service, card):
    payment = call(client, "POST", "payments", {"amount": "20"}, status=201)
    path = f"payments/{payment['id']}/refunds"
    assert call(client, "POST", path, {"amount": "20.01", "reason": "too much"}, status=400)["error"]["hint"]
    refund = call(client, "POST", path, {"amount": "5", "reason": "not needed"}, status=201)
    assert (refund["status"], refund["amount"]) == ("succeeded", "5.00")
    service.clock.advance(1)
    rest = call(client, "POST", path, {"reason": "the rest"}, status=201)
    assert rest["amount"] == "15.00"
    assert [one["reason"] for one in call(client, "GET", path)["data"]] == ["not needed", "the rest"]
    assert call(client, "GET", f"payments/{payment['id']}")["refunded"] == "20.00"
    assert call(client, "GET", "balance")["cash"] == "0.00"


def test_auto_recharge_when_set_then_shown_and_when_switched_off_then_off(client, card):
    assert call(client, "GET", "auto-recharge")["enabled"] is False
    shown = call(client, "PUT", "auto-recharge", {"threshold": "10", "target": "50"})
    assert (shown["enabled"], shown["threshold"], shown["target"]) == (True, "10.00", "50.00")
    assert call(client, "GET", "auto-recharge") == shown
    for body in ({"threshold": "50", "target": "10"}, {"threshold": "10"}, {"threshold": "NaN", "target": "5"}):
        assert call(client, "PUT", "auto-recharge", body, status=400)["error"]["code"] == "invalid_amount"
    assert call(client, "PUT", "auto-recharge", {"enabled": False})["enabled"] is False


def test_dispute_when_opened_then_it_is_listed_with_what_the_balance_lost(client, stripe, service, card):
    call(client, "POST", "payments", {"amount": "20"}, status=201)
    stripe.open_dispute(next(iter(stripe.intents)))
    body, signature = stripe.sign(stripe.events[-1])
    sent = client.post("/api/billing/webhooks/stripe", content=body, headers={"Stripe-Signature": signature})
    assert sent.status_code == 200
    (dispute,) = call(client, "GET", "disputes")["data"]
    assert (dispute["taken"], dispute["amount"]) == ("20.00", "20.00")
    assert call(client, "GET", "balance")["cash"] == "0.00"


def test_everything_when_it_is_anothers_then_not_found(client, service, other_project_key, card):
    payment = call(client, "POST", "payments", {"amount": "20"}, status=201)
    with service.connect(other_project_key) as other:
        assert call(other, "GET", "cards")["data"] == call(other, "GET", "payments")["data"] == []
        for method, path, body in (
            ("DELETE", f"cards/{card['id']}", None),
            ("PUT", f"cards/{card['id']}/default", None),
            ("GET", f"payments/{payment['id']}", None),
            ("GET", f"payments/{payment['id']}/refunds", None),
            ("POST", f"payments/{payment['id']}/refunds", {"reason": "mine now"}),
            ("GET", "cards/setups/cardsetup-1", None),
        ):
            call(other, method, path, body, status=404)


class TestManual:
    """A server without card payments."""

    @pytest.fixture
    def settings(self, home):
        from luthier.settings import Settings

        return Settings(home=home, disk_reserve_bytes=0)

    def test_cards_when_payments_are_manual_then_the_way_out_is_a_grant(self, client):
        for method, path, body in (
            ("POST", "cards", {"payment_method": "pm_card_visa"}),
            ("POST", "cards/setups", {}),
            ("POST", "payments", {"amount": "20"}),
            ("PUT", "auto-recharge", {"threshold": "10", "target": "50"}),
        ):
            error = call(client, method, path, body, status=409)["error"]
            assert error["code"] == "payments_are_manual"
            assert "luthier billing grant" in error["hint"]
        assert call(client, "GET", "cards")["data"] == []
