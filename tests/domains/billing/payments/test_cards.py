"""Cards: saved in each of three ways, one the default, removed here and at Stripe."""

from __future__ import annotations

import pytest

from luthier.billing import limits
from luthier.billing.payments import card_setups, cards
from luthier.errors import InvalidRequest, NotFound, PaymentRequired, Unavailable
from payments_desk import make_processor


def has_card(desk) -> bool:
    """Tell whether the credit line takes the organization for one with a card."""
    with desk.database.read() as tx:
        return limits.get_credit_line(tx, desk.organization_id).has_card


def test_add_card_by_token_saves_it_as_the_default_and_opens_the_credit_line(desk):
    assert not has_card(desk)
    setup = desk.add_card()
    assert (setup.status, setup.card.label, setup.card.is_default) == ("succeeded", "visa ending in 4242", True)
    assert desk.list_cards() == [setup.card]
    assert has_card(desk)


def test_second_card_is_not_the_default_until_it_is_made_so(desk):
    first, second = desk.add_card().card, desk.add_card("pm_card_mastercard").card
    assert [card.is_default for card in desk.list_cards()] == [True, False]
    with desk.database.transaction() as tx:
        assert cards.set_default(tx, desk.organization_id, second.id).is_default
    assert [card.is_default for card in desk.list_cards()] == [False, True]
    assert desk.pay(20).card_id == second.id
    assert first.id != second.id


def test_add_card_when_its_bank_declines_it_is_refused_and_nothing_is_kept(desk):
    with pytest.raises(PaymentRequired, match="Your card was declined") as caught:
        desk.add_card("pm_card_chargeDeclined")
    assert caught.value.code == "card_declined"
    assert (desk.list_cards(), has_card(desk)) == ([], False)


@pytest.mark.parametrize("token", ["4242424242424242", "", "pm_", "tok_visa", "pm_card visa", "pm_" + "x" * 300])
def test_add_card_by_what_is_no_token_is_refused_and_the_value_told_nowhere(desk, stripe, token):
    with pytest.raises(InvalidRequest) as caught:
        desk.add_card(token)
    assert caught.value.code == "invalid_payment_method"
    assert "4242" not in caught.value.message
    assert stripe.requests == []


def test_add_card_by_a_token_that_stripe_does_not_know_is_refused(desk):
    with pytest.raises(PaymentRequired, match="No such PaymentMethod"):
        desk.add_card("pm_unknown")


def test_card_that_must_be_confirmed_is_saved_once_its_owner_did(desk, stripe):
    setup = desk.add_card("pm_card_authenticationRequiredOnSetup")
    assert (setup.status, setup.card) == ("needs_action", None)
    assert setup.action_url.startswith("https://hooks.stripe.com/")
    stripe.finish_setup(setup.action_url.rpartition("/")[2])
    assert desk.check_setup(setup.id).status == "succeeded"
    assert desk.pay(20).status == "succeeded"


def test_page_of_ours_gets_a_client_secret_once_and_the_card_comes_by_itself(desk, stripe):
    setup = desk.begin_setup(is_hosted=False)
    assert (setup.status, setup.kind) == ("open", "page")
    ref = setup.client_secret.partition("_secret_")[0]
    assert "secret" not in repr(setup)
    assert desk.check_setup(setup.id).client_secret is None
    stripe.finish_setup(ref)
    desk.settle(10)
    assert [card.last4 for card in desk.list_cards()] == ["4242"]


def test_page_of_stripe_s_is_named_and_the_card_comes_by_itself(desk, stripe):
    setup = desk.begin_setup(is_hosted=True)
    assert (setup.status, setup.kind, setup.client_secret) == ("open", "hosted", None)
    assert setup.action_url.startswith("https://checkout.stripe.com/")
    stripe.finish_session(setup.action_url.rpartition("/")[2], "pm_card_mastercard")
    desk.settle(10)
    assert [card.last4 for card in desk.list_cards()] == ["4444"]
    assert desk.check_setup(setup.id).action_url is None


def test_setup_that_nobody_finishes_is_over_after_a_day(desk):
    setup = desk.begin_setup(is_hosted=True)
    desk.settle(2 * 86_400)
    settled = desk.check_setup(setup.id)
    assert (settled.status, settled.failure_code) == ("canceled", "expired")


@pytest.mark.parametrize("fault", ["lost", "drop", "error"])
def test_add_card_when_the_answer_is_lost_says_so_and_the_card_comes_once(desk, stripe, fault):
    desk.begin_setup(is_hosted=True)  # so that the customer is known
    stripe.fail(fault, "/v1/setup_intents")
    with pytest.raises(Unavailable) as caught:
        desk.add_card()
    assert caught.value.code == "processor_unreachable"
    for _ in range(3):
        desk.settle()
    assert len(desk.list_cards()) == (0 if fault == "error" else 1)


def test_customer_when_the_answer_is_lost_is_made_once(desk, stripe):
    stripe.fail("lost", "/v1/customers")
    with pytest.raises(Unavailable):
        desk.add_card()
    desk.add_card()
    assert len(stripe.customers) == 1


def test_remove_card_takes_the_next_as_default_and_the_last_closes_the_credit_line(desk, stripe):
    first, second = desk.add_card().card, desk.add_card("pm_card_mastercard").card
    assert desk.remove_card(first.id).removed_at is not None
    assert [(card.id, card.is_default) for card in desk.list_cards()] == [(second.id, True)]
    assert has_card(desk)
    desk.remove_card(second.id)
    assert (desk.list_cards(), has_card(desk)) == ([], False)
    assert {method["customer"] for method in stripe.methods.values()} == {None}
    with pytest.raises(NotFound, match=first.id):
        desk.remove_card(first.id)


@pytest.mark.parametrize("fault", ["drop", "lost"])
def test_remove_card_when_stripe_does_not_answer_is_repeated_until_it_has_forgotten_it(desk, stripe, fault):
    card = desk.add_card().card
    stripe.fail(fault, "/v1/payment_methods")
    desk.remove_card(card.id)
    assert desk.list_cards() == []
    desk.settle()
    asked = len(stripe.requests)
    assert {method["customer"] for method in stripe.methods.values()} == {None}
    desk.settle()
    assert len(stripe.requests) == asked


def test_card_of_another_organization_is_not_found(desk):
    card = desk.add_card().card
    with desk.database.read() as tx, pytest.raises(NotFound, match=card.id):
        cards.get_card(tx, "org-other", card.id)
    with desk.database.read() as tx, pytest.raises(NotFound):
        card_setups.get_setup(tx, "org-other", desk.add_card().id)


def test_more_cards_than_anybody_needs_are_refused(desk):
    for _ in range(cards.MAX_CARDS):
        desk.add_card()
    with pytest.raises(InvalidRequest, match="20 cards already"):
        desk.add_card()


def test_same_token_twice_is_one_card(desk, stripe):
    desk.add_card()
    (ref,) = stripe.methods
    assert desk.add_card(ref).card == desk.list_cards()[0]
    assert len(desk.list_cards()) == 1


def test_add_card_when_the_library_retries_makes_one(desk, stripe):
    desk.processor = make_processor(stripe, retries=1)
    stripe.fail("lost", "/v1/setup_intents")
    desk.add_card()
    assert (len(desk.list_cards()), len(stripe.setups)) == (1, 1)
