"""What Stripe sends, over HTTP: the status says whether it is to be sent again."""

from __future__ import annotations

import httpx
import pytest

from luthier.accounts import service as accounts
from payments_desk import Desk, make_processor, make_settings
from stripe_simulator import Simulator

PATH = "/api/billing/webhooks/stripe"


@pytest.fixture
def stripe():
    with Simulator().running() as simulator:
        yield simulator


@pytest.fixture
def settings(home, stripe):
    return make_settings(home, stripe)


@pytest.fixture
def desk(service, stripe) -> Desk:
    """The default organization's payments, with a card on file."""
    with service.database.read() as tx:
        principal = accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=service.clock.now())
    services_policy = Desk.open(service.database, service.clock, stripe, service.home).policy
    desk = Desk(
        service.database, service.clock, stripe, services_policy, make_processor(stripe), principal.organization_id
    )
    desk.add_card()
    return desk


@pytest.fixture
def sender(service):
    """Stripe, which has no API key."""
    with httpx.Client(base_url=service.base_url, timeout=30) as client:
        yield client


def send(sender, stripe, event, **changes):
    body, signature = stripe.sign(event)
    headers = {"Stripe-Signature": signature, "Content-Type": "application/json; charset=utf-8"}
    return sender.post(PATH, content=changes.get("content", body), headers=headers)


def test_webhook_is_applied_and_known_the_second_time(sender, stripe, desk):
    stripe.fail("lost", "/v1/payment_intents")
    view = desk.pay(20)
    answers = [send(sender, stripe, stripe.events[-1]) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [answer.json()["outcome"] for answer in answers] == ["applied", "known", "known"]
    assert desk.get_payment(view.id).status == "succeeded"
    assert desk.cash == 20


def test_forged_webhook_is_400_and_changes_nothing(sender, stripe, desk):
    event = {"id": "evt_1", "type": "x", "data": {"object": {"object": "payment_intent", "id": "pi_1"}}}
    asked = len(stripe.requests)
    answer = send(sender, stripe, event, content=b'{"id": "evt_2"}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_signature")
    assert sender.post(PATH, content=b"{}").status_code == 400
    assert len(stripe.requests) == asked


def test_webhook_that_cannot_be_applied_is_503_so_that_stripe_sends_it_again(sender, stripe, desk):
    desk.pay(20)
    event = stripe.events[-1]
    stripe.fail("drop", "/v1/payment_intents", times=3)  # the server's library tries three times
    answer = send(sender, stripe, event)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "webhook_not_applied")
    assert send(sender, stripe, event).json()["outcome"] == "applied"


def test_webhook_of_more_than_a_mebibyte_is_413(sender, stripe, desk):
    answer = sender.post(PATH, content=b" " * (1024**2 + 1), headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_page_that_a_card_s_owner_comes_back_to_needs_no_key(sender):
    answer = sender.get("/api/billing/return")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "You may close this page" in answer.text


def test_no_secret_of_stripe_s_is_in_an_answer_a_row_or_the_log(sender, stripe, desk, service, capfd):
    desk.begin_setup(is_hosted=False)
    send(sender, stripe, stripe.events[-1], content=b"{}")
    stripe.secret_key = "sk_test_rotated0123456789"
    desk.pay(20)
    send(sender, stripe, {"id": "evt_9", "type": "x", "data": {"object": {"object": "charge", "id": "ch"}}})
    secrets = ["sk_test_", "whsec_", "_secret_simulator"]
    with service.database.engine.connect() as connection:
        import sqlalchemy as sa

        for table in sa.inspect(connection).get_table_names():
            text = repr(connection.exec_driver_sql(f'SELECT * FROM "{table}"').fetchall())
            assert not [secret for secret in secrets if secret in text], table
    captured = capfd.readouterr()
    assert not [secret for secret in secrets if secret in captured.out + captured.err]
    assert not [secret for secret in secrets if secret in repr(service.settings)]
