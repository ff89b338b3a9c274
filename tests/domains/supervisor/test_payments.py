"""The supervisor's part of payments: a tick settles and recharges, and one part's trouble does not keep the others."""

from __future__ import annotations

import pytest

from luthier.billing.policy import make_policy
from luthier.settings import Settings
from luthier.supervisor.payments import Payments
from payments_desk import Desk
from stripe_simulator import Simulator


@pytest.fixture
def stripe():
    with Simulator().running() as simulator:
        yield simulator


@pytest.fixture
def desk(database, clock, stripe, home):
    desk = Desk.open(database, clock, stripe, home)
    desk.add_card()
    return desk


@pytest.fixture
def payments(desk):
    return Payments(desk.database, desk.processor, desk.policy, desk.clock)


def test_tick_settles_what_is_open_and_recharges(desk, payments, stripe):
    stripe.fail("lost", "/v1/payment_intents")
    view = desk.pay(5)
    desk.set_recharge(10, 50)
    desk.clock.advance(150)
    payments.tick()
    assert desk.get_payment(view.id).status == "succeeded"
    assert (desk.cash, stripe.count_charges()) == (50, 2)
    asked = len(stripe.requests)
    payments.tick()
    assert (len(stripe.requests), stripe.count_charges()) == (asked, 2)


def test_tick_when_settling_breaks_still_recharges(desk, stripe, capsys):
    class Broken:
        """A processor whose payments cannot be looked for."""

        def __getattr__(self, name):
            return getattr(desk.processor, name)

        def find_payment(self, order, *, since):
            raise RuntimeError("broken")

    stripe.fail("drop", "/v1/payment_intents")
    desk.pay(5)
    desk.set_recharge(10, 50)
    desk.clock.advance(150)
    Payments(desk.database, Broken(), desk.policy, desk.clock).tick()
    assert desk.cash == 50
    captured = capsys.readouterr()
    assert "payments not looked after" in captured.out + captured.err


def test_tick_where_payments_are_manual_asks_nobody(desk, stripe, home):
    desk.set_recharge(10, 50)
    asked = len(stripe.requests)
    Payments(desk.database, desk.processor, make_policy(Settings(home=home)), desk.clock).tick()
    assert len(stripe.requests) == asked
