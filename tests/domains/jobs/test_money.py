"""A job and its money: held when it is queued, resolved when it ends, and told in its log."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import sqlalchemy as sa

import factories
from factories import POLICY, make_inputs, make_job, make_principal, make_request
from luthier.billing import audit, ledger, limits
from luthier.billing.ledger import Cause
from luthier.errors import PaymentRequired
from luthier.jobs import endings, log, progress, queue, service
from luthier.jobs.schemas import Outcome

DOLLAR = 1_000_000_000
TOKENS = 10_000_000  # at 480 nano-dollars: $4.80
PRICE = TOKENS * 480


@pytest.fixture
def who(database, clock):
    with database.transaction() as tx:
        return make_principal(tx, now=clock.now(), dollars=10)


def create(tx, who, clock, *, inputs=None, **fields):
    inputs = inputs or make_inputs(tx, who, now=clock.now(), tokens=TOKENS)
    return service.create(tx, who, make_request(inputs, **fields), policy=POLICY, now=clock.now(), idempotency_key=None)


def balance(database, who):
    with database.read() as tx:
        return ledger.get_balance(tx, who.organization_id)


def list_told(database, job_id):
    with database.read() as tx:
        return [(event.type, event.message) for event in log.list_events(tx, job_id)]


def test_create_holds_the_price_and_the_hold_says_what_is_bought(database, clock, who):
    with database.transaction() as tx:
        job = create(tx, who, clock)
        hold = ledger.find_hold(tx, job.id)
    assert (hold.amount_nanos, hold.billed_tokens, hold.rate_nanos) == (PRICE, TOKENS, 480)
    assert (hold.project_id, hold.api_key_id, hold.base_model) == (who.project_id, who.api_key_id, job.base_model)
    assert (hold.method, hold.training_type, hold.price_version) == ("sft", "Lora", "2025")
    assert balance(database, who).held_nanos == PRICE
    assert audit.verify(database).problems == []


def test_create_with_too_little_is_refused_with_the_numbers_and_nothing_is_made(database, clock, who):
    with database.transaction() as tx:
        inputs = make_inputs(tx, who, now=clock.now(), tokens=TOKENS)
    with pytest.raises(PaymentRequired) as caught, database.transaction() as tx:
        create(tx, who, clock, inputs=inputs, n_epochs=3)
    assert "the price is $14.40; there is an available balance of $10.00: $4.40 is missing" in caught.value.message
    with database.read() as tx:
        assert service.list_jobs(tx, who.project_id) == []
    assert balance(database, who).held_nanos == 0


def test_create_below_the_minimum_is_refused_whatever_the_price(database, clock):
    with database.transaction() as tx:
        poor = make_principal(tx, now=clock.now(), dollars=4)
        inputs = make_inputs(tx, poor, now=clock.now(), tokens=1)
        with pytest.raises(PaymentRequired, match=r"need at least \$5\.00: \$1\.00 is missing"):
            create(tx, poor, clock, inputs=inputs)


def test_price_that_turns_out_too_high_ends_the_job_with_billing_limit_and_no_charge(database, clock, who):
    with database.transaction() as tx:
        model = factories.make_model(tx, now=clock.now())
        file_id = factories.make_file(tx, who, now=clock.now())
        job = create(tx, who, clock, inputs=factories.Inputs(model, file_id))
        assert job.state == "pending"
    with database.transaction() as tx:
        factories.make_tokenization(tx, who, file_id, now=clock.now(), counts=factories.make_counts(tokens=3 * TOKENS))
        assert service.advance_pending(tx, job.id, policy=POLICY, now=clock.now())
    told = list_told(database, job.id)
    assert [type for type, _ in told] == ["job_pending", "billing_limit", "job_stopped"]
    assert "the price is $14.40" in told[1][1]
    assert "available balance of $10.00: $4.40 is missing" in told[1][1]
    assert "hint: " in told[1][1]
    with database.read() as tx:
        job = service.get_job(tx, who.project_id, job.id)
        assert ledger.find_hold(tx, job.id) is None
    assert (job.state, job.charged_nanos, job.error_kind) == ("cancelled", 0, "billing_limit")
    assert "$14.40" in job.why
    assert balance(database, who).available_nanos == 10 * DOLLAR


def test_cancel_before_the_start_gives_everything_back_and_says_so(database, clock, who):
    with database.transaction() as tx:
        job = create(tx, who, clock)
        service.cancel(tx, who.project_id, job.id, now=clock.now())
    told = dict(list_told(database, job.id))
    assert told["refund"] == "$4.80 that was held for the job is given back: the job was cancelled"
    assert "nothing was charged" in told["job_stopped"]
    assert balance(database, who).available_nanos == 10 * DOLLAR


def test_cancel_in_the_middle_charges_the_completed_steps_and_gives_the_rest_back(database, clock, who):
    with database.transaction() as tx:
        inputs = make_inputs(tx, who, now=clock.now(), tokens=TOKENS)
        job = make_job(tx, who, now=clock.now(), state="cancelled", inputs=inputs, step=3, total_steps=10)
    told = dict(list_told(database, job.id))
    assert told["refund"] == "$3.36 of $4.80 that was held for the job is given back: the job was cancelled"
    assert "$1.44 charged for the completed steps" in told["job_stopped"]
    after = balance(database, who)
    assert (after.spent_nanos, after.held_nanos, after.available_nanos) == (
        PRICE * 3 // 10,
        0,
        10 * DOLLAR - PRICE * 3 // 10,
    )


@pytest.mark.parametrize("state", ["error", "user_error"])
def test_failed_job_costs_nothing(database, clock, who, state):
    with database.transaction() as tx:
        inputs = make_inputs(tx, who, now=clock.now(), tokens=TOKENS)
        job = make_job(tx, who, now=clock.now(), state=state, inputs=inputs, step=3, total_steps=10)
    types = [type for type, _ in list_told(database, job.id)]
    assert types[-2:] == ["refund", "job_error"]
    assert balance(database, who) == ledger.Balance(0, 10 * DOLLAR, 0, 0)


def test_completed_job_costs_its_quote_and_has_no_refund(database, clock, who):
    with database.transaction() as tx:
        inputs = make_inputs(tx, who, now=clock.now(), tokens=TOKENS)
        job = make_job(tx, who, now=clock.now(), state="completed", inputs=inputs, step=10, total_steps=10)
    assert "refund" not in dict(list_told(database, job.id))
    assert balance(database, who).spent_nanos == PRICE == job.charged_nanos


def test_fifty_creates_at_once_pass_exactly_as_far_as_the_balance_goes(database, clock):
    with database.transaction() as tx:
        who = make_principal(tx, now=clock.now(), dollars=53)  # ten of $4.80, with what the minimum asks beside
        inputs = make_inputs(tx, who, now=clock.now(), tokens=TOKENS)
    outcomes = []

    def try_one(seed):
        try:
            with database.transaction() as tx:
                outcomes.append(create(tx, who, clock, inputs=inputs, random_seed=seed).state)
        except PaymentRequired:
            outcomes.append("refused")

    threads = [threading.Thread(target=try_one, args=(seed,)) for seed in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count("queued"), outcomes.count("refused")) == (11, 39)
    with database.read() as tx:
        assert len(service.list_jobs(tx, who.project_id)) == 11
    assert balance(database, who).held_nanos == 11 * PRICE
    assert audit.verify(database).problems == []


def set_limit(database, clock, who, dollars):
    with database.transaction() as tx:
        limits.set_limit(tx, who.organization_id, "project", who.project_id, dollars * DOLLAR, now=clock.now())


def enforce(database, clock, policy=POLICY):
    with database.read() as tx:
        found = endings.review(tx, policy=policy, now=clock.now())
    for job_id, excess in found.uncovered.items():
        with database.transaction() as tx:
            endings.warn_or_stop(tx, job_id, excess, policy, now=clock.now())
    for job_id in found.covered_again:
        with database.transaction() as tx:
            endings.clear_deadline(tx, job_id, now=clock.now())


@pytest.fixture
def two_jobs(database, clock, who):
    """A job that trains, and a newer one that waits; $9.60 of $10 is held for them."""
    with database.transaction() as tx:
        inputs = make_inputs(tx, who, now=clock.now(), tokens=TOKENS)
        factories.give(tx, who.organization_id, 10 * DOLLAR, now=clock.now())
        older = make_job(tx, who, now=clock.now(), state="running", inputs=inputs, step=5, total_steps=10).id
        clock.advance(1)
        return older, create(tx, who, clock, inputs=inputs, random_seed=7).id


def get_state(database, who, job_id):
    with database.read() as tx:
        return service.get_job(tx, who.project_id, job_id).state


def test_limit_lowered_below_what_runs_warns_the_newest_job_and_ends_it_after_the_grace(database, clock, who, two_jobs):
    older, newer = two_jobs
    set_limit(database, clock, who, 5)
    enforce(database, clock)
    enforce(database, clock)  # twice is as good as once
    told = list_told(database, newer)
    assert [type for type, _ in told][-1] == "warning"
    assert len([type for type, _ in told if type == "warning"]) == 1
    assert "$5.00, and $9.60 is spent or held" in told[-1][1]
    assert "is ended at 2026-01-01T12:10:01Z unless that changes" in told[-1][1]
    clock.advance(POLICY.grace_s)
    enforce(database, clock)
    enforce(database, clock)
    assert [type for type, _ in list_told(database, newer)][-3:] == ["billing_limit", "refund", "job_stopped"]
    assert get_state(database, who, newer) == "cancelled"
    assert get_state(database, who, older) == "running"  # what is left is covered
    assert "warning" not in dict(list_told(database, older))


def test_limit_raised_within_the_grace_lets_the_job_go_on(database, clock, who, two_jobs):
    _, newer = two_jobs
    set_limit(database, clock, who, 5)
    enforce(database, clock)
    set_limit(database, clock, who, 50)
    enforce(database, clock)
    clock.advance(2 * POLICY.grace_s)
    enforce(database, clock)
    assert get_state(database, who, newer) == "queued"
    assert list_told(database, newer)[-1][1] == "Funds and limits cover the job again: it goes on"


def test_running_job_that_a_limit_ends_pays_its_completed_steps(database, clock, who, two_jobs):
    older, newer = two_jobs
    set_limit(database, clock, who, 0)
    enforce(database, clock, replace(POLICY, grace_s=0))
    assert get_state(database, who, newer) == "cancelled"
    assert get_state(database, who, older) == "cancel_requested"
    with database.transaction() as tx:
        (claim,) = queue.list_held(tx, factories.OWNER)
        progress.settle(tx, older, claim.token, Outcome(state="cancelled"), now=clock.now())
    with database.read() as tx:
        job = service.get_job(tx, who.project_id, older)
    assert job.charged_nanos == PRICE // 2
    assert "monthly limit" in job.why
    assert balance(database, who).spent_nanos == PRICE // 2
    assert audit.verify(database).problems == []


def test_balance_taken_away_by_a_dispute_ends_the_newest_job(database, clock, who, two_jobs):
    older, newer = two_jobs
    with database.transaction() as tx:
        ledger.withdraw(
            tx, who.organization_id, 12 * DOLLAR, key="d", cause=Cause("payment", "p"), note="x", now=clock.now()
        )
    enforce(database, clock, replace(POLICY, grace_s=0))
    told = dict(list_told(database, newer))
    assert "The available balance is -$1.60" in told["billing_limit"]
    assert get_state(database, who, newer) == "cancelled"
    assert get_state(database, who, older) == "running"


def test_job_that_is_being_cancelled_is_not_told_that_it_goes_on(database, clock, who, two_jobs):
    older, _ = two_jobs
    set_limit(database, clock, who, 0)
    enforce(database, clock, replace(POLICY, grace_s=0))
    set_limit(database, clock, who, 50)
    enforce(database, clock)
    assert [type for type, _ in list_told(database, older)][-2:] == ["billing_limit", "cancel_requested"]


def test_limit_raised_between_the_look_and_the_end_keeps_the_job(database, clock, who, two_jobs):
    _, newer = two_jobs
    set_limit(database, clock, who, 5)
    with database.read() as tx:
        found = endings.review(tx, policy=POLICY, now=clock.now())
    set_limit(database, clock, who, 50)
    with database.transaction() as tx:
        endings.warn_or_stop(tx, newer, found.uncovered[newer], replace(POLICY, grace_s=0), now=clock.now())
    assert get_state(database, who, newer) == "queued"


@pytest.mark.parametrize("ending", ["cancelled", "completed", "error"])
def test_job_for_which_nothing_was_ever_held_ends_and_costs_nothing(database, clock, who, ending):
    """Jobs that were accepted before there was money are live when the schema is brought up to date."""
    with database.transaction() as tx:
        inputs = make_inputs(tx, who, now=clock.now(), tokens=TOKENS)
        job = make_job(tx, who, now=clock.now(), state="uploading", inputs=inputs, step=5, total_steps=10)
        tx.execute(sa.text("DELETE FROM holds"))
    with database.transaction() as tx:
        (claim,) = queue.list_held(tx, factories.OWNER)
        if ending == "cancelled":
            service.cancel(tx, who.project_id, job.id, now=clock.now())
        progress.settle(tx, job.id, claim.token, Outcome(state=ending, message="x"), now=clock.now())
    with database.read() as tx:
        job = service.get_job(tx, who.project_id, job.id)
    assert (job.state, job.charged_nanos) == (ending, 0)


def test_alert_is_told_in_the_log_of_the_job_that_set_it_off(database, clock, who):
    set_limit(database, clock, who, 6)
    with database.transaction() as tx:
        job = create(tx, who, clock)
    assert dict(list_told(database, job.id))["warning"].startswith("80 % of the monthly limit of project")


def test_job_keeps_the_price_of_the_list_that_it_was_quoted_from(database, clock, who):
    dearer = replace(POLICY, prices=replace(POLICY.prices, version="dearer", minimum_nanos=9 * DOLLAR))
    with database.transaction() as tx:
        factories.give(tx, who.organization_id, 100 * DOLLAR, now=clock.now())
        inputs = make_inputs(tx, who, now=clock.now(), tokens=TOKENS)
        first = create(tx, who, clock, inputs=inputs)
        second = service.create(
            tx, who, make_request(inputs, random_seed=1), policy=dearer, now=clock.now(), idempotency_key=None
        )
    assert (first.price_nanos, first.price_version) == (PRICE, "2025")
    assert (second.price_nanos, second.price_version) == (9 * DOLLAR, "dearer")
    with database.read() as tx:
        assert service.get_job(tx, who.project_id, first.id).price_nanos == PRICE
