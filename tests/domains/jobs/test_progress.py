from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import OWNER, POLICY, make_inputs, make_job, make_principal
from luthier.jobs import log, moves, progress, queue, service, states
from luthier.jobs.schemas import Outcome, ProgressUpdate


@pytest.fixture
def principal(database, clock):
    with database.transaction() as tx:
        return make_principal(tx, now=clock.now())


@pytest.fixture
def held(database, clock, principal):
    """A running job of 1,000 tokens at 480,000 nano-dollars, as its supervisor holds it."""
    with database.transaction() as tx:
        make_job(tx, principal, now=clock.now(), state="running", step=0, total_steps=None)
        return queue.list_held(tx, OWNER)[0]


def get(database, principal, held):
    with database.read() as tx:
        return service.get_job(tx, principal.project_id, held.job_id), log.list_events(tx, held.job_id)


def test_record_keeps_what_was_said_and_leaves_the_rest(database, clock, principal, held):
    with database.transaction() as tx:
        first = ProgressUpdate(step=3, total_steps=8, param_count=100, trainable_param_count=7, journal_offset=50)
        progress.record(tx, held.job_id, held.token, first, now=clock.now())
        clock.advance(5)
        second = ProgressUpdate(
            step=4, seconds_remaining=12.5, tokens_done=99, epochs_completed=1, heard_at=clock.now()
        )
        progress.record(tx, held.job_id, held.token, second, now=clock.now())
    job, _ = get(database, principal, held)
    assert (job.step, job.total_steps, job.param_count, job.trainable_param_count) == (4, 8, 100, 7)
    assert (job.seconds_remaining, job.tokens_done, job.epochs_completed) == (12.5, 99, 1)
    assert job.heard_at == job.updated_at == clock.now()
    assert job.why == "Training: step 4 of 8"
    with database.read() as tx:
        assert queue.list_held(tx, OWNER)[0].journal_offset == 50


def test_record_when_the_journal_goes_back_is_our_own_fault(database, clock, held):
    with pytest.raises(AssertionError, match="goes back from 50 to 49"), database.transaction() as tx:
        for offset in (50, 49):
            progress.record(tx, held.job_id, held.token, ProgressUpdate(journal_offset=offset), now=clock.now())


def test_move_when_the_table_has_no_such_way_changes_nothing(database, clock, principal, held):
    before = get(database, principal, held)
    with pytest.raises(states.IllegalMove, match="from running to uploading"), database.transaction() as tx:
        progress.move(tx, held.job_id, held.token, "uploading", "model_uploading", "x", now=clock.now())
    assert get(database, principal, held) == before


def test_move_with_the_wrong_event_is_our_own_fault(database, clock, held):
    with pytest.raises(AssertionError, match="told by model_compressing"), database.transaction() as tx:
        progress.move(tx, held.job_id, held.token, "compressing", "model_uploading", "x", now=clock.now())


def settle(database, clock, held, outcome, *, step=0, total_steps=10):
    with database.transaction() as tx:
        update = ProgressUpdate(step=step, total_steps=total_steps)
        progress.record(tx, held.job_id, held.token, update, now=clock.now())
        if outcome.state == "completed":
            progress.move(tx, held.job_id, held.token, "compressing", "model_compressing", "x", now=clock.now())
            progress.move(tx, held.job_id, held.token, "uploading", "model_uploading", "x", now=clock.now())
        progress.settle(tx, held.job_id, held.token, outcome, now=clock.now())


def test_settle_when_completed_charges_the_quote(database, clock, principal, held):
    clock.advance(60)
    settle(database, clock, held, Outcome(state="completed"), step=10)
    job, events = get(database, principal, held)
    assert (job.state, job.charged_nanos, job.price_nanos) == ("completed", 480_000, 480_000)
    assert job.finished_at == clock.now()
    assert job.why == f"Completed as {job.output_name}; $0.00048 charged"
    assert (events[-1].type, events[-1].message) == ("job_complete", "Job finished at 2026-01-01T12:01:00Z")
    assert events[-1].data["charged_nanos"] == 480_000


@pytest.mark.parametrize(
    ("step", "total_steps", "charged", "text"),
    [
        (0, 10, 0, "after step 0 of 10; nothing was charged"),
        (0, None, 0, "before the first step; nothing was charged"),
        (3, 10, 144_000, "after step 3 of 10; $0.000144 charged for the completed steps"),
        (1, 3, 333 * 480, "after step 1 of 3; $0.00015984 charged for the completed steps"),
        (10, 10, 480_000, "after step 10 of 10; $0.00048 charged for the completed steps"),
    ],
)
def test_settle_when_cancelled_charges_the_completed_steps(
    database, clock, principal, held, step, total_steps, charged, text
):
    with database.transaction() as tx:
        service.cancel(tx, principal.project_id, held.job_id, now=clock.now())
    settle(database, clock, held, Outcome(state="cancelled"), step=step, total_steps=total_steps)
    job, events = get(database, principal, held)
    assert (job.state, job.charged_nanos) == ("cancelled", charged)
    assert job.price_nanos == 480_000
    assert job.total_price_nanos == charged
    refunds = [event for event in events if event.type == "refund"]
    assert [event.data["refund_nanos"] for event in refunds] == [480_000 - charged][: charged != 480_000]
    assert [event.type for event in events if event not in refunds][-2:] == ["cancel_requested", "job_stopped"]
    assert events[-1].message == f"Job stopped at 2026-01-01T12:00:00Z {text}"


def test_settle_when_cancelled_without_having_been_asked_is_our_own_fault(database, clock, held):
    with pytest.raises(states.IllegalMove, match="from running to cancelled"):
        settle(database, clock, held, Outcome(state="cancelled"))


@pytest.mark.parametrize("state", ["error", "user_error"])
def test_settle_when_failed_charges_nothing_and_says_why(database, clock, principal, held, state):
    outcome = Outcome(
        state=state,
        message="the loss is not a number at step 7",
        hint="lower the learning rate",
        error_kind="non_finite_loss",
        data={"traceback": "…"},
    )
    settle(database, clock, held, outcome, step=7)
    job, events = get(database, principal, held)
    assert (job.state, job.charged_nanos, job.error_kind) == (state, 0, "non_finite_loss")
    assert "the loss is not a number at step 7; nothing was charged" in job.why
    assert (events[-1].type, events[-1].level, events[-1].step) == ("job_error", "error", 7)
    assert events[-1].message == (
        "the loss is not a number at step 7; nothing was charged; hint: lower the learning rate"
    )
    assert events[-1].data == {"traceback": "…", "hint": "lower the learning rate", "charged_nanos": 0}


def test_settle_ends_the_lease(database, clock, held):
    settle(database, clock, held, Outcome(state="error", message="x"))
    clock.advance(1000)
    with database.transaction() as tx:
        assert queue.list_held(tx, OWNER) == []
        assert queue.adopt(tx, owner=OWNER, lease_s=30, now=clock.now()) == []


def test_database_itself_refuses_a_lease_that_does_not_fit_the_state(database, held):
    import sqlalchemy as sa

    from luthier.jobs.tables import Job

    for values in ({"state": "completed"}, {"lease_owner": None}, {"state": "resting"}, {"charged_nanos": 480_001}):
        with pytest.raises(sa.exc.IntegrityError), database.transaction() as tx:
            tx.execute(sa.update(Job).where(Job.id == held.job_id).values(**values))


def test_format_time_has_no_fraction_and_says_utc(clock):
    assert moves.format_time(clock.now()) == "2026-01-01T12:00:00Z"


# I14: the quote is the price in the end.
@settings(max_examples=15)
@given(
    rows=st.integers(min_value=1, max_value=1000),
    tokens=st.integers(min_value=1, max_value=10**9),
    validation_tokens=st.none() | st.integers(min_value=1, max_value=10**6),
    n_epochs=st.integers(min_value=1, max_value=20),
    n_evals=st.integers(min_value=0, max_value=100),
    packing=st.booleans(),
    is_full=st.booleans(),
    total_steps=st.integers(min_value=1, max_value=10**6),
)
def test_estimate_quote_and_final_price_are_the_same_number(
    database, clock, rows, tokens, validation_tokens, n_epochs, n_evals, packing, is_full, total_steps
):
    n_evals = n_evals if validation_tokens is not None else 0
    with database.transaction() as tx:
        principal = make_principal(tx, now=clock.now(), dollars=10**9)
        inputs = make_inputs(
            tx, principal, now=clock.now(), rows=rows, tokens=tokens, validation_tokens=validation_tokens
        )
        job = make_job(
            tx,
            principal,
            now=clock.now(),
            state="completed",
            inputs=inputs,
            step=total_steps,
            total_steps=total_steps,
            n_epochs=n_epochs,
            n_evals=n_evals,
            packing=packing,
            training_type={"type": "Full" if is_full else "Lora"},
        )
        estimate = service.estimate(
            tx, principal, service.JobRequest.from_body(dict(job.request)), policy=POLICY, now=clock.now()
        )
    per_epoch = tokens if packing else rows * 512
    per_eval = 0 if not n_evals else validation_tokens if packing else rows * 512
    steps = n_epochs * -(-rows // job.hyperparameters.batch_size)  # the counts of the factory pack nothing together
    expected = (n_epochs * per_epoch + min(n_evals, steps) * per_eval) * (540 if is_full else 480)
    assert job.charged_nanos == job.price_nanos == estimate.quote.price_nanos == expected
