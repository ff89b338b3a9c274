"""The event stream over HTTP: across reconnects, server restarts and clients that vanish."""

from __future__ import annotations

import json
import time

import httpx
import pytest

import factories
from luthier.accounts import service as accounts
from luthier.jobs import log, progress, queue
from luthier.jobs import service as jobs
from luthier.jobs.schemas import MetricView, Outcome

DEADLINE_S = 20


@pytest.fixture
def owner(service):
    with service.database.read() as tx:
        return accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=service.clock.now())


@pytest.fixture
def job(service, owner):
    """A running job."""
    with service.database.transaction() as tx:
        return factories.make_job(tx, owner, now=service.clock.now(), state="running", total_steps=3)


def add_metric(service, job, step: int) -> None:
    with service.database.transaction() as tx:
        metric = MetricView(logged_at=service.clock.now(), kind="train", step=step, epoch=1.0, loss=1 / step)
        log.append_metrics(tx, job.id, [metric])


def add_event(service, job, message: str) -> None:
    with service.database.transaction() as tx:
        log.append(tx, job.id, "warning", message, now=service.clock.now(), level="warning", data={"line": 3})


def settle(service, job, state: str = "completed") -> None:
    with service.database.transaction() as tx:
        (claim,) = queue.list_held(tx, factories.OWNER)
        if state == "completed":
            progress.move(tx, job.id, claim.token, "compressing", "model_compressing", "c", now=service.clock.now())
            progress.move(tx, job.id, claim.token, "uploading", "model_uploading", "u", now=service.clock.now())
        outcome = Outcome(state=state, message="no")
        progress.settle(tx, job.id, claim.token, outcome, now=service.clock.now())


def read(response: httpx.Response, until=lambda messages: False) -> list[tuple[str, str, dict]]:
    """Read messages until the stream ends or ``until`` says that these are enough."""
    messages = []
    block: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            block[name] = value.removeprefix(" ")
        elif "data" in block:
            messages.append((block["event"], block["id"], json.loads(block["data"])))
            block = {}
            if until(messages):
                break
        else:
            block = {}
    return messages


def follow(client: httpx.Client, job_id: str, *, last_event_id: str | None = None, until=lambda messages: False):
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with client.stream("GET", f"/api/fine-tunes/{job_id}/stream", headers=headers, timeout=DEADLINE_S) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "no-cache" in response.headers["cache-control"]
        return read(response, until)


def has_state(messages) -> bool:
    return messages[-1][0] == "state"


def test_stream_of_a_finished_job_is_its_whole_log_and_ends(client, service, job):
    add_metric(service, job, 1)
    add_event(service, job, "two\nlines")
    settle(service, job)
    messages = follow(client, job.id)
    events = [data for kind, _, data in messages if kind == "event"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events][:4] == ["job_pending", "job_queued", "job_start", "warning"]
    assert events[3] | {"created_at": ""} == {
        "seq": 4, "created_at": "", "type": "warning", "level": "warning", "message": "two\nlines", "step": None, "data": {"line": 3},
    }  # fmt: skip
    (metric,) = [data for kind, _, data in messages if kind == "metric"]
    assert (metric["seq"], metric["kind"], metric["step"], metric["loss"]) == (1, "train", 1, 1.0)
    kind, at, state = messages[-1]
    assert (kind, at, state["status"]) == ("state", f"e{len(events)}.m1", "completed")
    assert state["charged_nanos"] == state["price_nanos"] == 1000 * 480


def test_stream_while_the_job_runs_brings_news_as_they_come(client, service, job):
    with client.stream("GET", f"/api/fine-tunes/{job.id}/stream", timeout=DEADLINE_S) as response:
        lines = response.iter_lines()

        def wait_for(text: str) -> None:
            assert any(text in line for line in lines)

        wait_for('"status":"running"')
        add_metric(service, job, 1)
        wait_for('"step":1')
        add_event(service, job, "careful")
        wait_for("careful")
        settle(service, job, "error")
        wait_for('"status":"error"')
        assert not [line for line in lines if line]  # and then it ends


def test_stream_when_resumed_at_another_server_brings_exactly_the_rest(service, second_service, client, job):
    add_metric(service, job, 1)
    add_event(service, job, "one")
    before = follow(client, job.id, until=has_state)
    add_metric(service, job, 2)
    add_event(service, job, "two")
    settle(service, job)
    with httpx.Client(base_url=second_service.base_url, headers=client.headers) as other:
        after = follow(other, job.id, last_event_id=before[-1][1])
    seqs = [(kind, data["seq"]) for kind, _, data in before + after if kind != "state"]
    assert len(seqs) == len(set(seqs))
    assert sorted(seqs) == sorted([("metric", 1), ("metric", 2), *(("event", seq) for seq in range(1, 9))])
    assert [data["step"] for kind, _, data in after if kind == "metric"] == [2]
    assert after[-1][2]["status"] == "completed"


def test_stream_when_the_job_is_deleted_ends_without_a_fault(client, service, owner, job):
    settle(service, job)
    with service.database.transaction() as tx:
        live = factories.make_job(tx, owner, now=service.clock.now(), state="queued")
    with client.stream("GET", f"/api/fine-tunes/{live.id}/stream", timeout=DEADLINE_S) as response:
        lines = response.iter_lines()
        assert any('"status":"queued"' in line for line in lines)
        with service.database.transaction() as tx:
            jobs.delete(tx, owner.project_id, live.id, force=True, now=service.clock.now())
        assert not [line for line in lines if line.startswith("data")]


def test_stream_with_a_strange_position_is_400_that_names_the_header(client, job):
    response = client.get(f"/api/fine-tunes/{job.id}/stream", headers={"Last-Event-ID": "yesterday"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "Last-Event-ID"


def test_stream_whose_client_vanished_is_given_up(client, job):
    assert count_requests(client) == 0
    follow(client, job.id, until=has_state)  # then closes the connection; the job goes on
    deadline = time.monotonic() + DEADLINE_S
    while count_requests(client) == 0:  # a request is counted once it is over
        assert time.monotonic() < deadline, "the server still serves the stream"
        time.sleep(0.02)


def count_requests(client) -> float:
    """Return how many streams the server has finished serving."""
    text = httpx.get(f"{client.base_url}/metrics").text
    counts = [line for line in text.splitlines() if "/stream" in line and "_count{" in line]
    return sum(float(line.rpartition(" ")[2]) for line in counts)


def test_job_view_of_a_waiting_job_names_the_missing_supervisor_in_the_stream(client, service, owner):
    with service.database.transaction() as tx:
        job = factories.make_job(tx, owner, now=service.clock.now(), state="queued")
    messages = follow(client, job.id, until=has_state)
    assert "supervisor" in messages[-1][2]["why"]
