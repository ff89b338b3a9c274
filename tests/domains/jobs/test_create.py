from __future__ import annotations

import re
from pathlib import Path

import pytest

from factories import (
    MODEL,
    POLICY,
    Inputs,
    make_counts,
    make_file,
    make_inputs,
    make_job,
    make_model,
    make_principal,
    make_request,
    make_tokenization,
)
from luthier.billing import quotes
from luthier.catalog import service as catalog
from luthier.catalog.tables import BaseModelRow
from luthier.errors import Conflict, InvalidRequest, NotFound
from luthier.files import service as files
from luthier.jobs import log, service
from luthier.jobs.request import JobRequest


@pytest.fixture
def principal(database, clock):
    with database.transaction() as tx:
        return make_principal(tx, now=clock.now(), slug="acme")


def create(tx, principal, request, clock):
    return service.create(tx, principal, request, policy=POLICY, now=clock.now(), idempotency_key=None)


def list_told(tx, job):
    return [(event.type, event.level) for event in log.list_events(tx, job.id)]


def test_create_when_all_is_ready_queues_the_job_at_its_exact_price(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now(), tokens=1000, validation_tokens=100)
        job = create(tx, principal, make_request(inputs, n_epochs=3, n_evals=2), clock)
    assert job.state == "queued"
    assert (job.train_tokens, job.validation_tokens, job.billed_tokens) == (1000, 100, 3200)
    assert job.price_nanos == 3200 * 480
    assert job.charged_nanos is None
    assert job.total_price_nanos == job.price_nanos
    assert job.training_file_lines == 10
    with database.read() as tx:
        assert service.get_job(tx, principal.project_id, job.id) == job
        assert list_told(tx, job) == [("job_pending", "info"), ("job_queued", "info")]
        assert (
            log.list_events(tx, job.id)[1].message
            == "Job queued; the price is $0.001536 for 3,200 tokens, and is held until the job ends"
        )


def test_create_names_the_output_after_project_model_suffix_and_job(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now())
        plain = create(tx, principal, make_request(inputs), clock)
        named = create(tx, principal, make_request(inputs, suffix="support-v2"), clock)
    assert re.fullmatch(r"ft-[0-9a-f-]+", plain.id)
    assert plain.output_name == f"acme/tiny-{plain.id[3:11]}"
    assert named.output_name == f"acme/tiny-support-v2-{named.id[3:11]}"
    assert named.suffix == "support-v2"


def test_create_when_unpacked_prices_every_row_as_a_whole_sequence(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now(), rows=10, tokens=1000)
        job = create(tx, principal, make_request(inputs, packing=False), clock)
    assert job.billed_tokens == 10 * 512


def test_create_when_full_training_costs_the_full_rate(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now())
        job = create(tx, principal, make_request(inputs, training_type={"type": "Full"}), clock)
    assert (job.rate_nanos, job.price_nanos) == (540, 540_000)


def test_create_when_fields_are_unknown_says_so_in_one_warning(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now())
        job = create(tx, principal, make_request(inputs, colour="red", zebra=1), clock)
    with database.read() as tx:
        warning = log.list_events(tx, job.id)[1]
    assert (warning.type, warning.level) == ("warning", "warning")
    assert warning.message.endswith("does not know, and ignored: colour, zebra")


def test_create_when_rows_are_cut_or_dropped_warns_with_their_lines(database, clock, principal):
    counts = make_counts(
        rows=40, used_rows=38, truncated_rows=1, truncated_lines=[7], dropped_rows=12, dropped_lines=list(range(1, 13))
    )
    with database.transaction() as tx:
        file_id = make_file(tx, principal, now=clock.now())
        make_model(tx, now=clock.now())
        make_tokenization(tx, principal, file_id, now=clock.now(), counts=counts)
        job = create(tx, principal, make_request(Inputs(MODEL, file_id)), clock)
    with database.read() as tx:
        cut, dropped = (event for event in log.list_events(tx, job.id) if event.type == "warning")
    assert cut.message == "train.jsonl: 1 row is longer than max_seq_length and cut there: line 7"
    assert cut.data == {"file_id": file_id, "rows": 1, "lines": [7]}
    assert dropped.message == (
        "train.jsonl: 12 rows have no token to train on and are left out: "
        "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more"
    )
    assert dropped.data["lines"] == list(range(1, 13))


def test_create_when_there_are_more_evaluations_than_steps_warns_and_bills_one_a_step(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now(), tokens=700, validation_tokens=50)
        job = create(tx, principal, make_request(inputs, n_epochs=2, n_evals=5, batch_size=8), clock)
        warnings = [event.message for event in log.list_events(tx, job.id) if event.type == "warning"]
    assert job.price_nanos == (2 * 700 + 4 * 50) * 480  # ten rows, eight a step: two steps an epoch
    assert warnings == [
        "n_evals is 5, but a job is evaluated at most once a step: this one has 4, and is evaluated and billed 4 times"
    ]


def test_create_when_validation_file_has_no_evaluations_warns_and_bills_none(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now(), validation_tokens=100)
        job = create(tx, principal, make_request(inputs, n_evals=0), clock)
    assert job.validation_tokens == 0
    assert job.validation_file_id == inputs.validation_file
    with database.read() as tx:
        assert "n_evals is 0" in log.list_events(tx, job.id)[1].message


def test_create_when_values_are_wrong_keeps_nothing(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now())
    with pytest.raises(InvalidRequest), database.transaction() as tx:
        create(tx, principal, make_request(inputs, n_epochs=0), clock)
    with database.read() as tx:
        assert service.list_jobs(tx, principal.project_id) == []


def test_create_keeps_what_was_sent_without_secrets(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now())
        job = create(tx, principal, make_request(inputs, n_epochs=2), clock)
    assert job.request == {"model": inputs.model, "training_file": inputs.training_file, "n_epochs": 2}


@pytest.mark.parametrize(
    ("fields", "param"), [({}, "model"), ({"model": ""}, "model"), ({"from_checkpoint": "ft-1"}, "from_checkpoint"), ({"model": 3}, "model")]
)  # fmt: skip
def test_create_when_no_model_is_named_says_which_field(database, clock, principal, fields, param):
    with pytest.raises(InvalidRequest) as caught, database.transaction() as tx:
        create(tx, principal, JobRequest.from_body(fields), clock)
    assert caught.value.param == param


def test_create_when_model_is_unknown_names_those_there_are(database, clock, principal):
    with database.transaction() as tx:
        make_model(tx, now=clock.now())
    with pytest.raises(NotFound, match="luthier/tyni") as caught, database.transaction() as tx:
        create(tx, principal, JobRequest.from_body({"model": "luthier/tyni"}), clock)
    assert "luthier/tiny" in caught.value.hint


def test_create_when_model_was_never_fetched_and_is_not_built_in_says_so(database, clock, principal):
    with database.transaction() as tx:
        catalog.add_model(
            tx, name="a/b", source="hub", reference="a/b", revision=None, private_dir=Path("/private"), now=clock.now()
        )
    with pytest.raises(Conflict, match="not known yet"), database.transaction() as tx:
        create(tx, principal, JobRequest.from_body({"model": "a/b", "training_file": "file-1"}), clock)


def test_create_when_file_belongs_to_another_project_finds_none(database, clock, principal):
    with database.transaction() as tx:
        other = make_principal(tx, now=clock.now())
        inputs = make_inputs(tx, other, now=clock.now())
    with pytest.raises(NotFound), database.transaction() as tx:
        create(tx, principal, make_request(inputs), clock)


def test_create_when_file_is_not_valid_names_the_first_error(database, clock, principal):
    report = {"error_count": 3, "errors": [{"line": 5, "path": "$.messages[0].role", "message": "unknown role"}]}
    with database.transaction() as tx:
        make_model(tx, now=clock.now())
        file_id = make_file(tx, principal, now=clock.now(), status="INVALID_FORMAT", report=report)
    with pytest.raises(InvalidRequest) as caught, database.transaction() as tx:
        create(tx, principal, make_request(Inputs(MODEL, file_id)), clock)
    assert "3 errors, the first in line 5, $.messages[0].role: unknown role" in caught.value.message
    assert caught.value.param == "training_file"


def test_create_when_file_has_another_purpose_is_refused(database, clock, principal):
    with database.transaction() as tx:
        make_model(tx, now=clock.now())
        file_id = make_file(tx, principal, now=clock.now(), purpose="eval")
    with pytest.raises(InvalidRequest, match="purpose eval"), database.transaction() as tx:
        create(tx, principal, make_request(Inputs(MODEL, file_id)), clock)


def test_create_when_file_is_not_checked_yet_waits_for_it(database, clock, principal):
    with database.transaction() as tx:
        make_model(tx, now=clock.now())
        file_id = make_file(tx, principal, now=clock.now(), status="QUEUED")
        job = create(tx, principal, make_request(Inputs(MODEL, file_id)), clock)
    assert job.state == "pending"
    assert job.price_nanos is None
    assert job.why == f"Waiting for the training file {file_id} (train.jsonl) to be checked"


def test_pending_job_goes_on_as_soon_as_each_thing_is_there(database, clock, principal):
    with database.transaction() as tx:
        make_model(tx, now=clock.now(), status="absent")
        file_id = make_file(tx, principal, now=clock.now(), status="QUEUED")
        job = create(tx, principal, make_request(Inputs(MODEL, file_id)), clock)

    def advance():
        with database.transaction() as tx:
            moved = service.advance_pending(tx, job.id, policy=POLICY, now=clock.now())
            return moved, service.get_job(tx, principal.project_id, job.id)

    assert advance()[0] is False
    with database.transaction() as tx:
        files.record_check(tx, file_id, {"valid": True, "nlines": 33}, now=clock.now())
    moved, view = advance()
    assert not moved
    assert view.why == f"Waiting for the base model {MODEL} to be fetched"
    with database.transaction() as tx:
        assert tx.get(BaseModelRow, MODEL).status == "queued"
        make_model(tx, now=clock.now())
    moved, view = advance()
    assert not moved
    assert view.why == "Waiting for the tokens to be counted"
    assert view.training_file_lines == 33
    with database.transaction() as tx:
        order = quotes.claim(tx, now=clock.now(), claim_s=60)
        quotes.record(tx, order.key, object_key="tokens/1", counts=make_counts(tokens=500), now=clock.now())
    moved, view = advance()
    assert moved
    assert (view.state, view.price_nanos) == ("queued", 500 * 480)
    assert advance()[0] is False


def finish_count(tx, clock, answer):
    order = quotes.claim(tx, now=clock.now(), claim_s=60)
    answer(order.key)


@pytest.mark.parametrize("role", ["training", "validation"])
def test_pending_job_when_data_cannot_be_tokenised_ends_by_the_inputs_fault(database, clock, principal, role):
    with database.transaction() as tx:
        model = make_model(tx, now=clock.now())
        good, bad = (make_file(tx, principal, now=clock.now()) for _ in range(2))
        make_tokenization(tx, principal, good, now=clock.now())
        names = (
            {"training_file": bad, "validation_file": good}
            if role == "training"
            else {"training_file": good, "validation_file": bad}
        )
        job = create(tx, principal, JobRequest.from_body({"model": model, "n_evals": 1, **names}), clock)
        error = {"code": "no_trainable_token", "message": "no row has one", "hint": "add assistant messages"}
        finish_count(tx, clock, lambda key: quotes.reject(tx, key, error, now=clock.now()))
        assert service.advance_pending(tx, job.id, policy=POLICY, now=clock.now())
    with database.read() as tx:
        job = service.get_job(tx, principal.project_id, job.id)
        last = log.list_events(tx, job.id)[-1]
    assert (job.state, job.charged_nanos, job.error_kind) == ("user_error", 0, "data")
    assert f"{role} file {bad}" in job.error_message
    assert (last.type, last.level) == ("job_error", "error")
    assert last.message.endswith("no row has one; nothing was charged; hint: add assistant messages")


def test_pending_job_when_no_token_is_trained_ends_by_the_inputs_fault(database, clock, principal):
    with database.transaction() as tx:
        file_id = make_file(tx, principal, now=clock.now())
        make_model(tx, now=clock.now())
        make_tokenization(tx, principal, file_id, now=clock.now(), counts=make_counts(trained_tokens=0))
        job = create(tx, principal, make_request(Inputs(MODEL, file_id)), clock)
    assert job.state == "user_error"
    assert "has no token to train on" in job.why


def test_pending_job_when_counting_fails_by_our_fault_ends_in_error_and_the_next_job_tries_again(
    database, clock, principal
):
    with database.transaction() as tx:
        file_id = make_file(tx, principal, now=clock.now())
        make_model(tx, now=clock.now())
        request = make_request(Inputs(MODEL, file_id))
        job = create(tx, principal, request, clock)
        for _ in range(quotes.MAX_ATTEMPTS):
            finish_count(tx, clock, lambda key: quotes.fail(tx, key, "out of memory", now=clock.now()))
        assert service.advance_pending(tx, job.id, policy=POLICY, now=clock.now())
        job = service.get_job(tx, principal.project_id, job.id)
        assert (job.state, job.error_kind) == ("error", "tokenising")
        assert "out of memory" in job.error_message
        service.confirm_delivered(tx, job.id, now=clock.now())
        again = create(tx, principal, request, clock)
        assert again.state == "pending"
        assert quotes.claim(tx, now=clock.now(), claim_s=60) is not None


def test_pending_job_when_model_cannot_be_fetched_ends_in_error(database, clock, principal):
    with database.transaction() as tx:
        make_model(tx, now=clock.now(), status="queued")
        file_id = make_file(tx, principal, now=clock.now())
        job = create(tx, principal, make_request(Inputs(MODEL, file_id)), clock)
        catalog.claim_fetch(tx, now=clock.now(), claim_s=60)
        catalog.fail_fetch(tx, MODEL, "the disk is full", now=clock.now(), is_final=True)
        assert service.advance_pending(tx, job.id, policy=POLICY, now=clock.now())
        job = service.get_job(tx, principal.project_id, job.id)
    assert (job.state, job.error_kind) == ("error", "base_model")
    assert "the disk is full" in job.error_message


def test_create_when_model_failed_before_asks_for_it_again(database, clock, principal):
    with database.transaction() as tx:
        make_model(tx, now=clock.now(), status="failed")
        file_id = make_file(tx, principal, now=clock.now())
        job = create(tx, principal, make_request(Inputs(MODEL, file_id)), clock)
        assert job.state == "pending"
        assert tx.get(BaseModelRow, MODEL).status == "queued"


def test_pending_job_when_its_file_turns_out_invalid_names_line_and_path(database, clock, principal):
    report = {
        "valid": False,
        "nlines": 9,
        "error_count": 1,
        "errors": [{"line": 2, "path": "$.text", "message": "not a string"}],
    }
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now(), state="pending")
        files.record_check(tx, job.training_file_id, report, now=clock.now())
        assert service.advance_pending(tx, job.id, policy=POLICY, now=clock.now())
        job = service.get_job(tx, principal.project_id, job.id)
    assert job.state == "user_error"
    assert "is not valid: line 2, $.text: not a string" in job.error_message


def test_pending_job_when_its_check_failed_by_our_fault_ends_in_error(database, clock, principal):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now(), state="pending")
        files.claim_check(tx, now=clock.now(), claim_s=60)
        files.fail_check(tx, job.training_file_id, "the time limit was hit", now=clock.now(), is_final=True)
        assert service.advance_pending(tx, job.id, policy=POLICY, now=clock.now())
        job = service.get_job(tx, principal.project_id, job.id)
    assert job.state == "error"
    assert "the time limit was hit" in job.error_message


def test_list_pending_names_the_jobs_that_wait_oldest_first(database, clock, principal):
    with database.transaction() as tx:
        first = make_job(tx, principal, now=clock.now(), state="pending")
        clock.advance(1)
        make_job(tx, principal, now=clock.now())
        second = make_job(tx, principal, now=clock.now(), state="pending")
        assert service.list_pending(tx) == [first.id, second.id]


def test_estimate_is_the_price_that_the_job_then_has(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now(), tokens=700, validation_tokens=50)
        request = make_request(inputs, n_epochs=2, n_evals=2)
        estimate = service.estimate(tx, principal, request, policy=POLICY, now=clock.now())
        job = create(tx, principal, request, clock)
    assert estimate.status == "ready"
    assert estimate.quote.price_nanos == job.price_nanos == (2 * 700 + 2 * 50) * 480


def test_estimate_judges_only_what_a_price_depends_on(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now())
        training_type = {"type": "Lora", "lora_r": 512, "lora_alpha": 16}
        request = make_request(inputs, training_type=training_type, learning_rate=77)
        assert service.estimate(tx, principal, request, policy=POLICY, now=clock.now()).status == "ready"
        with pytest.raises(InvalidRequest, match="n_epochs"):
            service.estimate(tx, principal, make_request(inputs, n_epochs=0), policy=POLICY, now=clock.now())


def test_estimate_when_file_is_not_checked_says_so(database, clock, principal):
    with database.transaction() as tx:
        make_model(tx, now=clock.now())
        file_id = make_file(tx, principal, now=clock.now(), status="RUNNING")
        estimate = service.estimate(tx, principal, make_request(Inputs(MODEL, file_id)), policy=POLICY, now=clock.now())
    assert (estimate.status, estimate.reason) == ("waiting", "train_file_not_validated")


def test_estimate_when_validation_file_is_invalid_says_which(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now())
        bad = make_file(
            tx, principal, now=clock.now(), status="INVALID_FORMAT", report={"error_count": 0, "errors": []}
        )
        request = make_request(inputs, validation_file=bad, n_evals=1)
        estimate = service.estimate(tx, principal, request, policy=POLICY, now=clock.now())
    assert (estimate.status, estimate.reason) == ("impossible", "eval_file_invalid")


def test_estimate_when_nothing_is_counted_asks_for_it_and_waits(database, clock, principal):
    with database.transaction() as tx:
        make_model(tx, now=clock.now())
        file_id = make_file(tx, principal, now=clock.now())
        estimate = service.estimate(tx, principal, make_request(Inputs(MODEL, file_id)), policy=POLICY, now=clock.now())
        assert (estimate.status, estimate.reason) == ("waiting", None)
        assert quotes.claim(tx, now=clock.now(), claim_s=60) is not None


def test_estimate_when_counting_failed_tells_whoever_asked_before_and_else_tries_again(database, clock, principal):
    with database.transaction() as tx:
        make_model(tx, now=clock.now())
        request = make_request(Inputs(MODEL, make_file(tx, principal, now=clock.now())))

        def estimate(**options):
            return service.estimate(tx, principal, request, policy=POLICY, now=clock.now(), **options)

        assert estimate().status == "waiting"
        for _ in range(quotes.MAX_ATTEMPTS):
            finish_count(tx, clock, lambda key: quotes.fail(tx, key, "out of memory", now=clock.now()))
        told = estimate(has_asked=True)
        assert (told.status, told.reason) == ("impossible", None)
        assert "out of memory" in told.message
        assert estimate().status == "waiting"


def test_estimate_when_model_failed_tells_whoever_asked_before_and_else_tries_again(database, clock, principal):
    with database.transaction() as tx:
        make_model(tx, now=clock.now(), status="failed")
        request = make_request(Inputs(MODEL, make_file(tx, principal, now=clock.now())))
        assert (
            service.estimate(tx, principal, request, policy=POLICY, now=clock.now(), has_asked=True).status
            == "impossible"
        )
        assert service.estimate(tx, principal, request, policy=POLICY, now=clock.now()).status == "waiting"
        assert tx.get(BaseModelRow, MODEL).status == "queued"
