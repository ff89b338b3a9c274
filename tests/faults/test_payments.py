"""A process that dies anywhere in a payment, a refund or a recharge: afterwards the books balance, charged once."""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import dataclass
from datetime import datetime

import pytest

from luthier import faults
from luthier.clock import ManualClock
from luthier.db import Database
from payments_desk import Desk, make_processor
from stripe_simulator import Simulator

DEADLINE_S = 60.0
POINTS = ["after_intent", "before_record", "after_record"]

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["luthier.billing.payments.stripe", "payments_desk"])


@dataclass(frozen=True)
class Address:
    """What a process needs to know of the simulator."""

    url: str
    secret_key: str
    webhook_secret: str


def pay(desk: Desk) -> None:
    for number in range(1, 4):
        desk.pay(20, key=f"order-{number}")


def refund(desk: Desk) -> None:
    for payment in desk.list_payments():
        if not payment.is_automatic:
            desk.refund(payment.id, 5, key="refund-1")


def recharge(desk: Desk) -> None:
    for number in range(1, 4):
        desk.run_recharge()
        desk.spend(45, key=f"spend-{number}")


def add_cards(desk: Desk) -> None:
    desk.add_card("pm_card_mastercard")
    desk.remove_card(desk.list_cards()[0].id)


def do_all(desk: Desk) -> None:
    if not desk.list_cards():
        desk.add_card()
    payment = desk.pay(20, key="order-1")
    desk.refund(payment.id, 5, key="refund-1")
    desk.set_recharge(50, 60)
    desk.run_recharge()


FLOWS = {"pay": pay, "refund": refund, "recharge": recharge, "cards": add_cards, "all": do_all}


def _run(url: str, address: Address, organization_id: str, now: datetime, policy, flow: str, armed: str) -> None:
    faults._armed = faults._parse(armed)
    faults._hits.clear()
    desk = Desk(Database(url), ManualClock(now), address, policy, make_processor(address), organization_id)
    FLOWS[flow](desk)


def _recharge(url: str, address: Address, organization_id: str, now: datetime, policy, started, counts) -> None:
    desk = Desk(Database(url), ManualClock(now), address, policy, make_processor(address), organization_id)
    started.wait(DEADLINE_S)
    counts.put(desk.run_recharge())


@pytest.fixture
def stripe():
    with Simulator().running() as simulator:
        yield simulator


@pytest.fixture
def desk(database, clock, stripe, home):
    return Desk.open(database, clock, stripe, home)


def describe(desk: Desk) -> tuple:
    """Return what a process needs to open the same desk."""
    stripe = desk.stripe
    address = Address(stripe.url, stripe.secret_key, stripe.webhook_secret)
    url = desk.database.engine.url.render_as_string(hide_password=False)
    return url, address, desk.organization_id, desk.clock.now(), desk.policy


def run_until_death(desk: Desk, flow: str, armed: str) -> int:
    """Run a flow in a process of its own, with a fault point armed; return how it ended."""
    process = _processes.Process(target=_run, args=(*describe(desk), flow, armed))
    process.start()
    process.join(DEADLINE_S)
    assert process.exitcode is not None, "the process hangs"
    desk.clock.advance(60)
    return process.exitcode


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("point", POINTS)
def test_payment_when_the_process_dies_is_charged_and_recorded_once(desk, stripe, point, nth):
    desk.add_card()
    assert run_until_death(desk, "pay", f"payments.{point}:{nth}") == faults.EXIT_CODE
    desk.settle()
    pay(desk)  # as the caller repeats what it had no answer to
    assert [payment.status for payment in desk.list_payments()] == ["succeeded"] * 3
    assert (desk.cash, stripe.count_charges()) == (60, 3)
    desk.assert_books_balance()


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("point", POINTS)
def test_refund_when_the_process_dies_is_sent_and_recorded_once(desk, stripe, point, nth):
    desk.add_card()
    pay(desk)
    assert run_until_death(desk, "refund", f"refunds.{point}:{nth}") == faults.EXIT_CODE
    desk.settle()
    refund(desk)
    assert (desk.cash, [one["amount"] for one in stripe.refunds.values()]) == (45, [500] * 3)
    desk.assert_books_balance()


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("point", POINTS)
def test_recharge_when_the_process_dies_is_charged_and_recorded_once(desk, stripe, point, nth):
    desk.add_card()
    desk.set_recharge(10, 50)
    assert run_until_death(desk, "recharge", f"recharge.{point}:{nth}") == faults.EXIT_CODE
    desk.settle()
    recharge(desk)
    assert [amount for _, amount in stripe.charges] == [5000, 4500, 4500]
    assert desk.cash == 5
    desk.assert_books_balance()


@pytest.mark.parametrize("point", ["cards.after_intent", "cards.before_record", "cards.after_record"])
def test_card_when_the_process_dies_while_it_is_saved_comes_once(desk, stripe, point):
    assert run_until_death(desk, "cards", f"{point}:1") == faults.EXIT_CODE
    desk.settle()
    assert [card.last4 for card in desk.list_cards()] == ["4444"]
    assert len(stripe.setups) == 1


def test_card_when_the_process_dies_while_it_is_removed_is_forgotten_by_stripe_too(desk, stripe):
    assert run_until_death(desk, "cards", "cards.after_remove:1") == faults.EXIT_CODE
    assert desk.list_cards() == []
    desk.settle()
    assert {method["customer"] for method in stripe.methods.values()} == {None}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_everything_when_the_process_dies_at_its_nth_commit_ends_as_if_it_had_not(
    database, clock, stripe, home, moment
):
    deaths = 0
    while True:
        desk = Desk.open(database, clock, stripe, home)
        charged = stripe.count_charges()
        code = run_until_death(desk, "all", f"transaction.{moment}_commit:{deaths + 1}")
        desk.settle()
        do_all(desk)
        assert [amount for _, amount in stripe.charges[charged:]] == [2000, 4500]
        assert desk.cash == 60
        assert [payment.status for payment in desk.list_payments()] == ["succeeded"] * 2
        assert [card.last4 for card in desk.list_cards()] == ["4242"]
        desk.assert_books_balance()
        if code == 0:
            break
        assert code == faults.EXIT_CODE
        deaths += 1
    assert deaths > 10
    assert len(stripe.refunds) == deaths + 1


def test_recharge_while_another_process_is_at_it_charges_nothing(desk, stripe):
    desk.add_card()
    desk.set_recharge(10, 50)
    is_asked, may_answer = threading.Event(), threading.Event()

    def wait():
        is_asked.set()
        assert may_answer.wait(DEADLINE_S)

    stripe.before_charge = wait
    started, counts = _processes.Barrier(1), _processes.Queue()
    process = _processes.Process(target=_recharge, args=(*describe(desk), started, counts))
    process.start()
    assert is_asked.wait(DEADLINE_S)
    assert desk.run_recharge() == 0
    may_answer.set()
    process.join(DEADLINE_S)
    assert counts.get(timeout=DEADLINE_S) == 1
    assert (desk.cash, stripe.count_charges()) == (50, 1)


def test_recharge_by_four_processes_at_once_charges_once(desk, stripe):
    desk.add_card()
    desk.set_recharge(10, 50)
    started, counts = _processes.Barrier(4), _processes.Queue()
    processes = [_processes.Process(target=_recharge, args=(*describe(desk), started, counts)) for _ in range(4)]
    for process in processes:
        process.start()
    assert sum(counts.get(timeout=DEADLINE_S) for _ in processes) == 1
    for process in processes:
        process.join(DEADLINE_S)
    assert (desk.cash, stripe.count_charges()) == (50, 1)
    desk.assert_books_balance()
