from __future__ import annotations

import re
import time
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

import factories
from luthier.accounts import service as accounts
from luthier.api.request_schema import JobBody
from luthier.artifacts import service as artifacts
from luthier.jobs import log, progress, queue
from luthier.jobs.request import JobRequest
from luthier.jobs.schemas import MetricView, Outcome, ProgressUpdate
from luthier.jobs.tables import Idempotency
from luthier.settings import Settings

V1_USER_AGENT = {"User-Agent": "Together/v1 PythonBindings/1.5.35"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture
def settings(home) -> Settings:
    """Estimates that do not wait."""
    return Settings(home=home, disk_reserve_bytes=0, estimate_wait_s=0.3)


@pytest.fixture
def owner(service):
    """The default project, as whoever has the admin key sees it."""
    with service.database.read() as tx:
        return accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=service.clock.now())


@pytest.fixture
def inputs(service, owner):
    """A model and checked files of 1000 and 300 tokens."""
    with service.database.transaction() as tx:
        return factories.make_inputs(tx, owner, now=service.clock.now(), tokens=1000, validation_tokens=300)


@pytest.fixture
def body(inputs) -> dict:
    """The least that a create needs."""
    return {"model": inputs.model, "training_file": inputs.training_file}


def make_job(service, owner, **options):
    with service.database.transaction() as tx:
        return factories.make_job(tx, owner, now=service.clock.now(), **options)


def test_create_answers_with_every_choice_made_and_the_price(client, body, inputs, owner):
    job = client.post("/v1/fine-tunes", json={**body, "suffix": "mine", "n_epochs": 3}).json()
    assert job["status"] == "queued"
    assert job["queue_depth"] == 0
    assert job["id"] == job["job_id"]
    assert re.fullmatch(r"ft-[0-9a-f-]+", job["id"])
    assert re.fullmatch(r"default/tiny-mine-[0-9a-f]{8}", job["model_output_name"])
    assert job["total_price"] == 3 * 1000 * 480
    assert job["token_count"] == 3000
    assert job["user_id"] == owner.api_key_id
    assert job["training_file"] == inputs.training_file
    assert (job["trainingfile_size"], job["TrainingFileSize"]) == (1000, 1000)
    assert (job["trainingfile_numlines"], job["TrainingFileNumLines"]) == (10, 10)
    assert isinstance(job["batch_size"], int)
    assert job["learning_rate"] == 1e-5
    assert job["lr_scheduler"] == {
        "lr_scheduler_type": "cosine",
        "lr_scheduler_args": {"min_lr_ratio": 0.0, "num_cycles": 0.5},
    }
    assert job["training_type"] == {
        "type": "Lora", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "lora_trainable_modules": "all-linear",
    }  # fmt: skip
    assert isinstance(job["training_type"]["lora_alpha"], int)
    assert job["training_method"] == {"method": "sft", "train_on_inputs": "auto"}
    assert job["progress"] == {"estimate_available": False, "seconds_remaining": 0}
    assert TIME.fullmatch(job["created_at"])
    assert TIME.fullmatch(job["updated_at"])


def test_create_leaves_out_what_is_not_known(client, body):
    job = client.post("/v1/fine-tunes", json=body).json()
    assert None not in job.values()
    unknown = {"started_at", "finished_at", "validation_file", "suffix", "param_count", "total_steps", "events"}
    assert not unknown & set(job)


def test_create_of_full_training_has_no_lora_fields(client, body):
    job = client.post("/v1/fine-tunes", json={**body, "training_type": {"type": "Full"}}).json()
    assert job["training_type"] == {"type": "Full"}
    assert job["total_price"] == 1000 * 540


def test_create_while_the_file_is_checked_is_pending_and_says_for_what_it_waits(client, service, owner, inputs):
    with service.database.transaction() as tx:
        file_id = factories.make_file(tx, owner, now=service.clock.now(), status="QUEUED")
    job = client.post("/v1/fine-tunes", json={"model": inputs.model, "training_file": file_id}).json()
    assert (job["status"], job["total_price"]) == ("pending", 0)
    assert file_id in job["why"]


def test_create_names_unknown_fields_in_a_warning(client, body):
    job = client.post("/v1/fine-tunes", json={**body, "colour": 1, "lr_scheduler": {"gamma": 2}}).json()
    events = client.get(f"/v1/fine-tunes/{job['id']}/events").json()["data"]
    (warning,) = [event for event in events if event["type"] == "warning"]
    assert warning["level"] == "warning"
    assert "colour" in warning["message"]
    assert "lr_scheduler.gamma" in warning["message"]


WRONG_VALUES = [
    ({"n_epochs": "3"}, "n_epochs"),
    ({"n_epochs": True}, "n_epochs"),
    ({"n_epochs": 2.5}, "n_epochs"),
    ({"n_epochs": 0}, "n_epochs"),
    ({"n_epochs": 10**30}, "n_epochs"),
    ({"learning_rate": 1}, "learning_rate"),
    ({"learning_rate": [1]}, "learning_rate"),
    ({"batch_size": "huge"}, "batch_size"),
    ({"warmup_ratio": -0.1}, "warmup_ratio"),
    ({"suffix": "a" * 65}, "suffix"),
    ({"suffix": "a/b"}, "suffix"),
    ({"n_evals": 3}, "n_evals"),
    ({"training_type": "Lora"}, "training_type"),
    ({"training_type": {"type": "Lora", "lora_r": 0}}, "training_type.lora_r"),
    ({"training_type": {"type": "Lora", "lora_trainable_modules": "nose"}}, "training_type.lora_trainable_modules"),
    ({"training_method": {"method": "dpo"}}, "training_method.method"),
    ({"from_checkpoint": "ft-1"}, "from_checkpoint"),
    ({"wandb_key": "secret"}, "wandb_key"),
    ({"early_stopping_enabled": True}, "early_stopping_enabled"),
    ({"training_file": 7}, "training_file"),
    ({"training_file": ""}, "training_file"),
    ({"model": 7}, "model"),
]


def test_create_of_a_wrong_value_is_400_that_names_the_field(client, body):
    for change, param in WRONG_VALUES:
        response = client.post("/v1/fine-tunes", json={**body, **change})
        assert response.status_code == 400, change
        error = response.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param), change
        assert param.rpartition(".")[2] in error["message"]
    assert client.get("/v1/fine-tunes").json()["data"] == []


def test_create_with_several_problems_tells_them_all(client, body):
    wrong = {"n_epochs": 0, "learning_rate": 5, "packing": "yes"}
    error = client.post("/v1/fine-tunes", json={**body, **wrong}).json()["error"]
    assert {detail["param"] for detail in error["details"]} == set(wrong)


def test_create_with_an_unknown_model_suggests_one(client, body):
    response = client.post("/v1/fine-tunes", json={**body, "model": "luthier/tinny"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "luthier/tiny" in response.json()["error"]["hint"]


def test_error_for_a_client_that_shows_the_message_only_has_its_hint_there(client, body):
    wrong = {**body, "model": "luthier/tinny"}
    for agent in ("Together/Python 3.1.1", "AsyncTogether/Python 3.1.1", "Together/v1 PythonBindings/1.5.35"):
        error = client.post("/v1/fine-tunes", json=wrong, headers={"User-Agent": agent}).json()["error"]
        assert error["message"] == f"unknown base model: luthier/tinny; hint: {error['hint']}"
    assert "hint" not in client.post("/v1/fine-tunes", json=wrong).json()["error"]["message"]


def test_create_with_an_unknown_file_is_404_that_names_it(client, body):
    response = client.post("/v1/fine-tunes", json={**body, "training_file": "file-404"})
    assert response.status_code == 404
    assert "file-404" in response.json()["error"]["message"]


def test_create_with_a_nul_character_is_refused(client, body):
    for name in ("model", "training_file", "suffix", "a\0b"):
        error = client.post("/v1/fine-tunes", json={**body, name: "a\0b"}).json()["error"]
        assert (error["code"], "NUL" in error["message"]) == ("invalid_json", True)
    escaped_backslash = {**body, "colour": "\\u0000"}
    assert client.post("/v1/fine-tunes", json=escaped_backslash).status_code == 200


NO_JSON_OBJECT = [
    b"", b"[]", b"null", b'"x"', b"{", b'{"n_epochs": NaN}', b'{"n_epochs": 1, "n_epochs": 2}', b'{"a": "\\ud800"}',
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"\xff",
]  # fmt: skip


def test_body_that_is_no_json_object_is_refused_in_our_shape(client):
    for path in ("/v1/fine-tunes", "/v1/fine-tunes/estimate-price"):
        for content in NO_JSON_OBJECT:
            response = client.post(path, content=content, headers={"Content-Type": "application/json"})
            assert response.status_code in {400, 422}, content[:30]
            assert response.json()["error"].keys() >= {"message", "type", "param", "code", "hint", "request_id"}


def test_create_repeated_by_the_client_after_a_lost_answer_is_one_job(client, body):
    first = client.post("/v1/fine-tunes", json=body).json()
    again = client.post("/v1/fine-tunes", json=body, headers={"x-stainless-retry-count": "1"}).json()
    assert again["id"] == first["id"]
    second = client.post("/v1/fine-tunes", json=body, headers={"Idempotency-Key": "k"}).json()
    assert second["id"] != first["id"]
    assert client.post("/v1/fine-tunes", json=body, headers={"Idempotency-Key": "k"}).json()["id"] == second["id"]
    assert len(client.get("/v1/fine-tunes").json()["data"]) == 2


def test_create_twice_on_purpose_is_two_jobs(client, service, body):
    ids = set()
    for _ in range(3):
        ids.add(client.post("/v1/fine-tunes", json=body).json()["id"])
        wait_until_confirmed(service)
    assert len(ids) == 3


def wait_until_confirmed(service):
    """Wait until the server knows that its answers have left: it writes that down just after they have."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with service.database.read() as tx:
            if not tx.execute(sa.select(Idempotency).where(Idempotency.delivered_at.is_(None))).first():
                return
        time.sleep(0.01)
    raise AssertionError("an answer was not confirmed within 10 s")


def test_list_is_oldest_first_and_pages(client, service, body):
    ids = []
    for n_epochs in (1, 2, 3):
        ids.append(client.post("/v1/fine-tunes", json={**body, "n_epochs": n_epochs}).json()["id"])
        service.clock.advance(1)
    assert [job["id"] for job in client.get("/v1/fine-tunes").json()["data"]] == ids
    page = client.get("/v1/fine-tunes", params={"limit": 1, "after": ids[0]}).json()
    assert [job["id"] for job in page["data"]] == [ids[1]]
    assert page["object"] == "list"


def test_estimate_is_the_price_of_the_job(client, inputs, body):
    request = {**body, "validation_file": inputs.validation_file, "n_epochs": 2, "n_evals": 3}
    evaluations = 2  # the job has two steps, and is evaluated at most once a step
    estimate = client.post("/v1/fine-tunes/estimate-price", json=request).json()
    assert estimate == {
        "estimation_available": True,
        "estimated_total_price": (2 * 1000 + evaluations * 300) * 480 / 1e9,
        "estimated_train_token_count": 2000,
        "estimated_eval_token_count": evaluations * 300,
        "allowed_to_proceed": True,
        "user_limit": 100.0,
        "currency": "USD",
    }
    job = client.post("/v1/fine-tunes", json=request).json()
    assert job["total_price"] == round(estimate["estimated_total_price"] * 1e9)


def test_estimate_accepts_what_the_clients_send_for_it(client, body):
    request = {
        **body, "validation_file": None, "from_checkpoint": "", "n_epochs": 1, "n_evals": 0,
        "training_type": {"type": "Lora", "lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "lora_trainable_modules": "all-linear"},
        "training_method": {"method": "sft", "train_on_inputs": "auto"},
    }  # fmt: skip
    assert client.post("/v1/fine-tunes/estimate-price", json=request).json()["estimation_available"] is True


def test_estimate_of_a_file_that_cannot_be_priced_says_why_in_the_wires_word(client, service, owner, inputs):
    report = {"valid": False, "error_count": 1, "errors": [{"line": 3, "message": "no"}]}
    for status, reason in (("QUEUED", "train_file_not_validated"), ("INVALID_FORMAT", "train_file_invalid")):
        with service.database.transaction() as tx:
            file_id = factories.make_file(tx, owner, now=service.clock.now(), status=status, report=report)
        request = {"model": inputs.model, "training_file": file_id}
        estimate = client.post("/v1/fine-tunes/estimate-price", json=request).json()
        assert (estimate["estimation_available"], estimate["unavailable_reason"]) == (False, reason)


def test_estimate_while_tokens_are_counted_is_503_that_says_so(client, service, owner, inputs):
    with service.database.transaction() as tx:
        file_id = factories.make_file(tx, owner, now=service.clock.now())
    response = client.post("/v1/fine-tunes/estimate-price", json={"model": inputs.model, "training_file": file_id})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "estimate_not_ready"
    assert "Waiting for" in response.json()["error"]["message"]


def test_job_of_a_worker_shows_its_progress(client, service, owner):
    job = make_job(service, owner, state="running", step=3, total_steps=10)
    service.clock.advance(20)
    with service.database.transaction() as tx:
        (claim,) = queue.list_held(tx, factories.OWNER)
        update = ProgressUpdate(step=4, seconds_remaining=30.0, param_count=7, heard_at=service.clock.now())
        progress.record(tx, job.id, claim.token, update, now=service.clock.now())
    shown = client.get(f"/v1/fine-tunes/{job.id}").json()
    assert (shown["status"], shown["steps_completed"], shown["total_steps"]) == ("running", 4, 10)
    assert shown["param_count"] == 7
    assert TIME.fullmatch(shown["started_at"])
    # The clients take the 20 s since the start off again.
    assert shown["progress"] == {"estimate_available": True, "seconds_remaining": 50}


def test_events_are_whole_and_oldest_first(client, service, owner):
    job = make_job(service, owner, state="completed")
    with service.database.transaction() as tx:
        log.append(
            tx, job.id, "checkpoint_save", "Saved", now=service.clock.now(), step=3,
            data={"checkpoint_path": "x/y", "new_job_id": "ft-2"},
        )  # fmt: skip
    events = client.get(f"/v1/fine-tunes/{job.id}/events").json()
    assert events["object"] == "list"
    assert [event["type"] for event in events["data"]] == [
        "job_pending", "job_queued", "job_start", "model_compressing", "model_uploading", "job_complete", "checkpoint_save",
    ]  # fmt: skip
    saved = events["data"][-1]
    assert saved == {
        "object": "fine-tune-event", "created_at": saved["created_at"], "level": "info", "message": "Saved",
        "type": "checkpoint_save", "param_count": None, "token_count": None, "total_steps": None, "wandb_url": None,
        "step": 3, "checkpoint_path": "x/y", "model_path": None, "training_offset": None, "hash": saved["hash"],
        "data": {"new_job_id": "ft-2"},
    }  # fmt: skip
    assert TIME.fullmatch(saved["created_at"])
    assert len({event["hash"] for event in events["data"]}) == len(events["data"])
    assert client.get(f"/v1/fine-tunes/{job.id}").json()["events"] == events["data"]


def test_events_for_a_v1_client_are_in_its_own_spelling(client, service, owner):
    job = make_job(service, owner, state="completed")
    for path in ("", "/events"):
        answer = client.get(f"/v1/fine-tunes/{job.id}{path}", headers=V1_USER_AGENT).json()
        assert [event["type"] for event in answer.get("data") or answer["events"]] == [
            "JOB_PENDING", "WARNING", "JOB_START", "COMPRESSING_MODEL", "MODEL_UPLOADING", "JOB_COMPLETE",
        ]  # fmt: skip


def test_cancel_of_a_live_job_answers_with_the_job(client, service, owner):
    for state, after in (("running", "cancel_requested"), ("pending", "cancelled"), ("queued", "cancelled")):
        job = make_job(service, owner, state=state)
        answer = client.post(f"/v1/fine-tunes/{job.id}/cancel").json()
        assert (answer["id"], answer["status"]) == (job.id, after)


def test_cancel_of_a_job_that_is_over_is_400_that_says_its_state(client, service, owner):
    for state in ("completed", "cancelled", "error", "user_error"):
        job = make_job(service, owner, state=state)
        response = client.post(f"/v1/fine-tunes/{job.id}/cancel")
        assert response.status_code == 400
        assert state in response.json()["error"]["message"]


def test_delete_of_a_live_job_needs_force(client, service, owner):
    job = make_job(service, owner, state="queued")
    refused = client.delete(f"/v1/fine-tunes/{job.id}")
    assert refused.status_code == 409
    assert "force" in refused.json()["error"]["hint"]
    assert client.get(f"/v1/fine-tunes/{job.id}").json()["status"] == "queued"
    assert job.id in client.delete(f"/v1/fine-tunes/{job.id}", params={"force": "true"}).json()["message"]
    assert client.get(f"/v1/fine-tunes/{job.id}").status_code == 404
    assert client.get("/v1/fine-tunes").json()["data"] == []


def record_archive(tx, job, *, step: int, kind: str, is_final: bool, now: datetime):
    return artifacts.record(
        tx, project_id=job.project_id, job_id=job.id, step=step, kind=kind, is_final=is_final, now=now,
        object_key=artifacts.name_object(job.id, step=step, kind=kind, is_final=is_final),
        size_bytes=10, sha256="ab" * 32, weights_sha256=None,
    )  # fmt: skip


def test_checkpoints_tell_their_type(client, service, owner):
    job = make_job(service, owner, state="completed")
    with service.database.transaction() as tx:
        for step, kind, is_final in ((5, "adapter", False), (10, "adapter", True), (10, "merged", True)):
            record_archive(tx, job, step=step, kind=kind, is_final=is_final, now=service.clock.now())
    found = client.get(f"/v1/fine-tunes/{job.id}/checkpoints").json()["data"]
    assert sorted((one["step"], one["checkpoint_type"], one["checkpoint"]) for one in found) == [
        (5, "Intermediate", "adapter"), (10, "Final Adapter", "adapter"), (10, "Final Merged", "model"),
    ]  # fmt: skip
    assert len({one["object_name"] for one in found}) == 3
    assert all(TIME.fullmatch(one["created_at"]) for one in found)


@pytest.fixture
def measured_job(service, owner) -> str:
    """A job with a training metric at each of 100 steps, a second apart, and an evaluation at every 25th."""
    job = make_job(service, owner, state="running", total_steps=100)
    start = service.clock.now()
    metrics = []
    for step in range(1, 101):
        at = start + timedelta(seconds=step)
        metrics.append(
            MetricView(
                logged_at=at,
                kind="train",
                step=step,
                epoch=step / 100,
                loss=1 / step,
                grad_norm=0.5,
                learning_rate=1e-5,
            )
        )
        if step % 25 == 0:
            metrics.append(MetricView(logged_at=at, kind="eval", step=step, epoch=step / 100, loss=2.0))
    with service.database.transaction() as tx:
        log.append_metrics(tx, job.id, metrics)
    return job.id


def get_metrics(client, job_id: str, **filters):
    response = client.get(f"/v1/fine-tunes/{job_id}/metrics", params=filters)
    assert response.status_code == 200, response.text
    return response.json()["metrics"]


def test_metrics_are_flat_numbers_with_nanoseconds(client, service, measured_job):
    metrics = get_metrics(client, measured_job)
    assert len(metrics) == 104
    assert metrics[0] == {
        "timestamp": (int(service.clock.now().timestamp()) + 1) * 10**9,
        "train/global_step": 1, "train/epoch": 0.01, "train/loss": 1.0, "train/grad_norm": 0.5, "train/learning_rate": 1e-5,
    }  # fmt: skip
    evals = [metric for metric in metrics if "eval/loss" in metric]
    assert [metric["train/global_step"] for metric in evals] == [25, 50, 75, 100]
    assert all("train/loss" not in metric for metric in evals)


def test_metrics_are_filtered_by_step_and_time_with_the_bounds_included(client, service, measured_job):
    by_step = get_metrics(client, measured_job, global_step_from=10, global_step_to=12)
    assert [metric["train/global_step"] for metric in by_step] == [10, 11, 12]
    start = service.clock.now()
    bounds = {"logged_at_from": start + timedelta(seconds=3), "logged_at_to": start + timedelta(seconds=4)}
    for form in (lambda moment: moment.isoformat(), lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S")):
        by_time = get_metrics(client, measured_job, **{name: form(moment) for name, moment in bounds.items()})
        assert [metric["train/global_step"] for metric in by_time] == [3, 4]


def test_metrics_resolution_spreads_training_metrics_and_keeps_evaluations(client, measured_job):
    for resolution in (1, 2, 7, 99, 100, 1000):
        metrics = get_metrics(client, measured_job, resolution=resolution)
        steps = [metric["train/global_step"] for metric in metrics if "train/loss" in metric]
        assert len(steps) == min(resolution, 100)
        assert steps == sorted(set(steps))
        assert steps[-1] == 100
        assert steps[0] == 1 or resolution == 1
        assert len(metrics) - len(steps) == 4


def test_metrics_filters_may_come_as_a_json_body(client, measured_job):
    response = client.request(
        "GET", f"/v1/fine-tunes/{measured_job}/metrics", json={"global_step_from": 99, "resolution": 1}
    )
    assert [metric["train/global_step"] for metric in response.json()["metrics"]] == [100, 100]


def test_metrics_filter_of_a_wrong_value_is_422_that_names_it(client, measured_job):
    for name, value in (
        ("global_step_from", "x"), ("resolution", 0), ("logged_at_from", "yesterday"), ("global_step_to", 10**30),
    ):  # fmt: skip
        for kind in ("params", "json"):
            response = client.request("GET", f"/v1/fine-tunes/{measured_job}/metrics", **{kind: {name: value}})
            assert response.status_code == 422
            assert response.json()["error"]["param"] == name


def test_documented_body_has_only_fields_that_jobs_know():
    assert set(JobBody.model_fields) <= set(JobRequest.__dataclass_fields__)


def test_our_own_view_shows_money_exactly_and_the_archives(client, service, owner):
    job = make_job(service, owner, state="running", step=5, total_steps=10)
    with service.database.transaction() as tx:
        (claim,) = queue.list_held(tx, factories.OWNER)
        record_archive(tx, job, step=5, kind="adapter", is_final=False, now=service.clock.now())
        progress.settle(
            tx, job.id, claim.token, Outcome(state="error", message="no", hint="try"), now=service.clock.now()
        )
    shown = client.get(f"/api/fine-tunes/{job.id}").json()
    assert shown["status"] == "error"
    assert (shown["price_nanos"], shown["charged_nanos"]) == (1000 * 480, 0)
    assert shown["error_message"] == "no"
    assert [(one["step"], one["kind"], one["is_final"]) for one in shown["artifacts"]] == [(5, "adapter", False)]
    assert shown["hyperparameters"]["n_epochs"] == 1
    assert "no" in shown["why"]


def test_job_without_a_supervisor_says_so(client, body):
    job = client.post("/v1/fine-tunes", json=body).json()
    assert "supervisor" in client.get(f"/v1/fine-tunes/{job['id']}").json()["why"]
    assert client.get("/api/status").json()["queued"] == 1
