"""Chores as real processes: the commands of datasets and catalog, under the supervisor's limits."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path

import pytest

import factories
from factories import POLICY
from luthier import faults
from luthier.billing.tables import Tokenization
from luthier.files import service as files
from luthier.files.tables import File
from luthier.jobs import service as jobs
from luthier.supervisor import chores
from supervision import DEADLINE_S, Workshop, is_running, wait_until

LINES = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"A number: {n}"}]}
    for n in range(20)
]


@pytest.fixture
def workshop(home):
    workshop = Workshop(home)
    yield workshop
    workshop.close()


def upload(workshop, lines=LINES) -> str:
    """Make a file that waits for its check, with its bytes in the store."""
    with workshop.database.transaction() as tx:
        file_id = factories.make_file(tx, workshop.principal, now=workshop.clock.now(), status="QUEUED")
        key = tx.get(File, file_id).object_key
    writer = workshop.store.open_writer(key)
    writer.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    writer.commit()
    return file_id


def get_file(workshop, file_id):
    with workshop.database.read() as tx:
        return files.get_file(tx, workshop.principal.project_id, file_id)


def wait_for_check(workshop, file_id):
    def find_checked():
        file = get_file(workshop, file_id)
        return file if file.processing_status not in {"QUEUED", "RUNNING"} else None

    return wait_until(find_checked, what="the file is checked")


def test_job_when_nothing_is_ready_has_its_file_checked_model_fetched_and_data_tokenised(workshop):
    file_id = upload(workshop)
    now = workshop.clock.now()
    with workshop.database.transaction() as tx:
        factories.make_model(tx, now=now, status="queued")
        request = factories.make_request(factories.Inputs(factories.MODEL, file_id))
        job = jobs.create(tx, workshop.principal, request, policy=POLICY, now=now, idempotency_key=None)
    assert job.state == "pending"
    with workshop.supervised():
        done = workshop.wait_for_state(job.id, "completed", "error", "user_error")
    assert done.state == "completed", done.error_message
    assert done.train_tokens > 100
    tokens = workshop.settings.runs_dir / job.id / "data" / "train.tokens"
    assert tokens.stat().st_size > done.train_tokens
    assert list((workshop.path / "chores").iterdir()) == []


def test_check_when_file_is_broken_reports_the_line(workshop):
    file_id = upload(workshop, [*LINES, {"messages": "none"}])
    with workshop.supervised():
        file = wait_for_check(workshop, file_id)
    assert file.processing_status == "INVALID_FORMAT"
    assert file.report["errors"][0]["line"] == 21


def test_check_when_it_takes_longer_than_its_limit_is_ended_and_says_so(home):
    workshop = Workshop(home, check_timeout_s=0.05)
    file_id = upload(workshop)
    with workshop.supervised():
        file = wait_for_check(workshop, file_id)
    assert file.processing_status == "FAILED"
    assert file.failure == "it took longer than 0.05 s and was ended"
    workshop.close()


def test_check_when_bytes_are_gone_fails_and_the_next_file_is_checked(workshop):
    lost, fine = upload(workshop), upload(workshop)
    workshop.store.delete(get_file(workshop, lost).object_key)
    with workshop.supervised():
        assert wait_for_check(workshop, lost).processing_status == "FAILED"
        assert wait_for_check(workshop, fine).processing_status == "COMPLETED"


@pytest.mark.parametrize("point", ["chore.after_claim", "chore.after_start", "chore.before_record"])
def test_check_when_supervisor_dies_is_done_by_the_next_once_the_claim_ran_out(workshop, point):
    file_id = upload(workshop)
    victim = workshop.start_supervisor(armed=f"{point}:1")
    workshop.wait_for_death(victim)
    assert victim.exitcode == faults.EXIT_CODE
    assert get_file(workshop, file_id).processing_status == "RUNNING"
    with workshop.database.transaction() as tx:  # thirty seconds later
        tx.get(File, file_id).claimed_until = workshop.clock.now() - timedelta(seconds=1)
    with workshop.supervised():
        assert wait_for_check(workshop, file_id).processing_status == "COMPLETED"
    assert list((workshop.path / "chores").iterdir()) == []


def test_chore_when_its_supervisor_died_is_ended_by_the_next(workshop):
    (workshop.path / "python").write_text("#!/bin/sh\nexec sleep 600\n")  # a chore that never ends
    upload(workshop)
    victim = workshop.start_supervisor()
    pid = wait_until(lambda: find_chore_pid(workshop), what="the chore has begun")
    victim.kill()
    victim.join()
    assert is_running(pid)
    with workshop.supervised():
        wait_until(lambda: not is_running(pid), what="the chore is ended")


def test_chore_when_supervisor_stops_in_order_is_ended_and_its_claim_given_back(workshop):
    python = workshop.path / "python"
    real = python.read_text()
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    file_id = upload(workshop)
    with workshop.supervised():
        pid = wait_until(lambda: find_chore_pid(workshop), what="the chore has begun")
    assert not is_running(pid)
    python.write_text(real)
    with workshop.supervised():  # at once, not when the claim has run out
        assert wait_for_check(workshop, file_id).processing_status == "COMPLETED"


class TrickyStore:
    """A store whose fetches fail some times, or wait until they may go on."""

    def __init__(self, store, *, failures: int = 0) -> None:
        self._store = store
        self._left = failures
        self.may_fetch = threading.Event()
        self.may_fetch.set()

    def fetch_file(self, key, destination) -> None:
        self.may_fetch.wait(DEADLINE_S)
        if self._left:
            self._left -= 1
            raise OSError("no space left on device")
        self._store.fetch_file(key, destination)

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_job_when_a_chores_file_is_copied_slowly_goes_on(workshop):
    store = TrickyStore(workshop.store)
    workshop.plan(steps=10_000)
    job_id = workshop.make_job()
    with workshop.supervised(store=store):
        workshop.wait_for_step(job_id, 1)
        store.may_fetch.clear()
        file_id = upload(workshop)
        wait_until(lambda: get_file(workshop, file_id).processing_status == "RUNNING", what="the check is claimed")
        workshop.wait_for_step(job_id, workshop.get_job(job_id).step + 20)
        assert get_file(workshop, file_id).processing_status == "RUNNING"
        store.may_fetch.set()
        assert wait_for_check(workshop, file_id).processing_status == "COMPLETED"


def test_check_when_it_cannot_be_prepared_for_a_moment_is_tried_again(workshop):
    file_id = upload(workshop)
    with workshop.supervised(store=TrickyStore(workshop.store, failures=2)):
        wait_until(lambda: get_file(workshop, file_id).processing_status == "COMPLETED", what="the file is checked")


def test_check_when_its_result_can_never_be_kept_fails_and_says_so(workshop, monkeypatch):
    def refuse(*_arguments, **_options):
        raise ValueError("a report of another form")

    monkeypatch.setattr(files, "record_check", refuse)
    file_id = upload(workshop)
    with workshop.supervised(give_up_s=0.2):
        wait_until(lambda: get_file(workshop, file_id).processing_status == "FAILED", what="the check has failed")
    assert get_file(workshop, file_id).failure == "its result could not be kept: ValueError: a report of another form"


def test_check_when_its_claim_went_to_another_is_ended_and_writes_nothing(workshop):
    (workshop.path / "python").write_text("#!/bin/sh\nexec sleep 600\n")
    file_id = upload(workshop)
    with workshop.supervised() as supervisor:
        pid = wait_until(lambda: find_chore_pid(workshop), what="the chore has begun")
        with workshop.database.transaction() as tx:
            tx.get(File, file_id).claim_number += 1
        for running in supervisor._chores._running:
            running.renewed_at -= chores.CLAIM_S
        wait_until(lambda: not is_running(pid), what="the chore is ended")
    assert get_file(workshop, file_id).processing_status == "RUNNING"


@pytest.mark.parametrize("point", ["chore.before_store", "chore.after_record"])
def test_job_when_supervisor_dies_around_the_tokens_of_its_data_completes(workshop, point):
    file_id = upload(workshop)
    now = workshop.clock.now()
    with workshop.database.transaction() as tx:
        factories.make_model(tx, now=now, status="queued")
        request = factories.make_request(factories.Inputs(factories.MODEL, file_id))
        job = jobs.create(tx, workshop.principal, request, policy=POLICY, now=now, idempotency_key=None)
    nth = {"chore.before_store": 1, "chore.after_record": 3}[point]  # after the check and the fetch
    victim = workshop.start_supervisor(armed=f"{point}:{nth}")
    workshop.wait_for_death(victim)
    assert victim.exitcode == faults.EXIT_CODE
    with workshop.database.transaction() as tx:  # thirty seconds later
        for row in tx.query(Tokenization):
            row.claimed_until = row.claimed_until and workshop.clock.now() - timedelta(seconds=1)
    workshop.start_supervisor()
    done = workshop.wait_for_state(job.id, "completed", "error", "user_error")
    assert done.state == "completed", done.error_message


def find_chore_pid(workshop):
    """Return the pid of a chore that has passed its gate."""
    for path in (workshop.path / "chores").glob("*/process.json"):
        pid = json.loads(path.read_text())["pid"]
        return None if b"luthier-gate" in Path(f"/proc/{pid}/cmdline").read_bytes() else pid
    return None
