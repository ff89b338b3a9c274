"""Workers and supervisors that die, hang, lie or are left alone: what the user then sees, and what it costs."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from factories import MODEL, Inputs, make_file, make_job, make_model, make_tokenization
from luthier.catalog.tables import BaseModelRow
from luthier.db import Database
from luthier.errors import Conflict
from luthier.files.tables import File
from luthier.jobs import service
from luthier.protocol import layout
from luthier.supervisor import loop
from luthier.supervisor.pace import Beat
from supervision import FailingStore, Workshop, is_running, wait_until


def wait_for_end(workshop, job_id):
    return workshop.wait_for_state(job_id, "completed", "cancelled", "error", "user_error")


def test_job_when_worker_is_killed_ends_in_error_and_costs_nothing(workshop):
    workshop.plan(hang_at=4)
    job_id = workshop.make_job()
    with workshop.supervised():
        workshop.wait_for_step(job_id, 3)
        os.kill(workshop.wait_for_worker(), signal.SIGKILL)
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.error_kind, job.charged_nanos) == ("error", "platform", 0)
    assert job.error_message == "the worker was killed in the middle of its work by signal 9 (Killed)"
    last = workshop.list_events(job_id)[-1]
    assert (last.type, last.level) == ("job_error", "error")
    assert "nothing was charged" in last.message
    assert workshop.list_steps(job_id) == [1, 2, 3]


def test_job_when_worker_exits_before_its_first_word_names_the_last_line_of_its_log(workshop):
    workshop.plan(silent_death=True)
    job_id = workshop.make_job()
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert job.state == "error"
    assert job.error_message == (
        "the worker ended before it said anything with exit code 1: ImportError: no module named torch"
    )
    assert len(workshop.list_starts()) == 1


@pytest.mark.parametrize(
    ("kind", "state"),
    [("data", "user_error"), ("hyperparameters", "user_error"), ("out_of_memory", "error"), ("disk", "error")],
)
def test_job_when_worker_reports_a_failure_ends_on_the_side_that_is_at_fault(workshop, kind, state):
    workshop.plan(fail=kind)
    job_id = workshop.make_job()
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.error_kind, job.error_message) == (state, kind, f"{kind} it is")
    assert job.charged_nanos == 0
    assert "hint: mend it" in workshop.list_events(job_id)[-1].message


def test_worker_when_supervisor_is_killed_goes_on_and_is_taken_over(workshop):
    workshop.plan(steps=40)
    job_id = workshop.make_job()
    first = workshop.start_supervisor()
    workshop.wait_for_step(job_id, 5)
    first.kill()
    first.join()
    assert is_running(workshop.wait_for_worker())
    workshop.start_supervisor()
    wait_for_end(workshop, job_id)
    workshop.assert_intact(job_id, steps=40)


def test_worker_when_supervisor_is_stopped_in_order_goes_on_and_is_taken_over(workshop):
    workshop.plan(steps=40)
    job_id = workshop.make_job()
    first = workshop.start_supervisor()
    workshop.wait_for_step(job_id, 5)
    first.terminate()
    first.join()
    assert first.exitcode == 0
    assert is_running(workshop.wait_for_worker())
    with workshop.supervised():
        wait_for_end(workshop, job_id)
    workshop.assert_intact(job_id, steps=40)


def test_worker_when_supervisor_is_stopped_in_order_outlives_its_lease_until_the_next_start(workshops):
    workshop = workshops(lease_s=1.1)
    workshop.plan(steps=100_000)
    job_id = workshop.make_job()
    first = workshop.start_supervisor()
    workshop.wait_for_step(job_id, 2)
    first.terminate()
    first.join()
    until = time.monotonic() + 2 * 1.1
    wait_until(lambda: time.monotonic() > until, what="two leases have passed")
    assert is_running(workshop.wait_for_worker())
    assert (workshop.get_lease(job_id)[1] - workshop.clock.now()).total_seconds() > 500
    with workshop.supervised():
        workshop.wait_for_step(job_id, workshop.get_job(job_id).step + 10)
        lease_file = workshop.settings.runs_dir / job_id / layout.LEASE
        wait_until(lambda: not lease_file.read_text(), what="the lease is an ordinary one again")
        workshop.cancel(job_id)
        assert wait_for_end(workshop, job_id).state == "cancelled"


def test_job_when_worker_dies_while_nobody_watches_ends_in_error(workshop):
    workshop.plan(hang_at=3)
    job_id = workshop.make_job()
    first = workshop.start_supervisor()
    workshop.wait_for_step(job_id, 2)
    first.kill()
    first.join()
    os.kill(workshop.wait_for_worker(), signal.SIGKILL)
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.charged_nanos) == ("error", 0)
    assert job.error_message == "the worker died while no supervisor was watching"


def test_job_when_worker_finished_while_nobody_watched_completes(workshop):
    workshop.plan(steps=20)
    job_id = workshop.make_job()
    first = workshop.start_supervisor()
    workshop.wait_for_step(job_id, 2)
    first.kill()
    first.join()
    worker = workshop.wait_for_worker()
    wait_until(lambda: not is_running(worker), what="the worker is done")
    with workshop.supervised():
        wait_for_end(workshop, job_id)
    workshop.assert_intact(job_id, steps=20)


def test_worker_when_stopped_past_its_lease_and_nobody_else_took_the_job_goes_on(workshops):
    workshop = workshops(lease_s=1.1)
    workshop.plan(steps=20)
    job_id = workshop.make_job()
    first = workshop.start_supervisor()
    workshop.wait_for_step(job_id, 2)
    worker = workshop.wait_for_worker()
    os.kill(worker, signal.SIGSTOP)
    first.kill()
    first.join()
    lease_ran_out(workshop, job_id)
    lease_file = workshop.settings.runs_dir / job_id / layout.LEASE
    stale = lease_file.stat().st_mtime
    with workshop.supervised():
        wait_until(lambda: lease_file.stat().st_mtime > stale, what="the job is taken over")
        os.kill(worker, signal.SIGCONT)
        wait_for_end(workshop, job_id)
    workshop.assert_intact(job_id, steps=20)


def test_supervisor_when_its_lease_went_to_another_ends_its_worker_and_writes_nothing(workshops):
    workshop = workshops(lease_s=1.1)
    workshop.plan(steps=10_000)
    job_id = workshop.make_job()
    frozen = workshop.make_supervisor()  # frozen from when it is not ticked any more; nor renews it any lease
    tick_until(frozen, lambda: workshop.get_job(job_id).step > 2)
    worker = workshop.wait_for_worker()
    os.kill(worker, signal.SIGSTOP)
    lease_ran_out(workshop, job_id)
    other = workshops(database_url=workshop.settings.resolved_database_url)
    with other.supervised():
        job = wait_for_end(workshop, job_id)
    assert job.error_message == "the supervisor that ran the job is gone, and its worker is not on this machine"
    seen = (workshop.list_events(job_id), workshop.list_steps(job_id), workshop.get_job(job_id))
    os.kill(worker, signal.SIGCONT)
    tick_until(frozen, lambda: not is_running(worker))
    assert (workshop.list_events(job_id), workshop.list_steps(job_id), workshop.get_job(job_id)) == seen
    workshop.plan()
    next_job = workshop.make_job()
    with workshop.supervised(frozen):
        workshop.wait_for_state(next_job, "completed")


def test_worker_when_never_renewed_ends_itself_and_the_job_fails_by_our_fault(workshops):
    workshop = workshops(lease_s=1.1)
    workshop.plan(steps=10_000)
    job_id = workshop.make_job()
    first = workshop.start_supervisor()
    workshop.wait_for_step(job_id, 2)
    worker = workshop.wait_for_worker()
    first.kill()
    first.join()
    wait_until(lambda: not is_running(worker), what="the worker has ended itself")
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.error_kind, job.charged_nanos) == ("error", "lease_lost", 0)


def tick_until(supervisor, condition):
    wait_until(lambda: supervisor.tick() or condition(), what="the supervisor got there")


def lease_ran_out(workshop, job_id):
    wait_until(lambda: workshop.get_lease(job_id)[1] < workshop.clock.now(), what="the lease ran out")


def test_job_when_it_completes_has_no_error(workshop):
    job_id = workshop.make_job()
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.error_kind, job.error_message) == ("completed", None, None)


def test_job_when_cancelled_while_training_stops_after_a_step_and_costs_the_completed_ones(workshop):
    workshop.plan(steps=1000)
    job_id = workshop.make_job()
    with workshop.supervised():
        workshop.wait_for_step(job_id, 5)
        workshop.cancel(job_id)
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.error_kind, job.error_message) == ("cancelled", None, None)
    assert job.charged_nanos == job.billed_tokens * job.step // 1000 * job.rate_nanos
    assert 5 <= job.step < 1000
    types = [event.type for event in workshop.list_events(job_id)]
    assert types[-3:] == ["cancel_requested", "refund", "job_stopped"]
    assert not is_running(workshop.wait_for_worker())
    assert [one.is_final for one in workshop.list_artifacts(job_id)] == [False]  # the checkpoint of step 3 stays


def test_job_when_cancelled_and_worker_does_not_stop_is_killed_after_the_grace(workshops):
    workshop = workshops(cancel_grace_s=0.3)
    workshop.plan(hang_at=3, ignore_sigterm=True)
    job_id = workshop.make_job()
    with workshop.supervised():
        workshop.wait_for_step(job_id, 2)
        workshop.cancel(job_id)
        job = wait_for_end(workshop, job_id)
    assert job.state == "cancelled"
    assert not is_running(workshop.wait_for_worker())


def test_job_when_cancelled_while_no_supervisor_lives_is_stopped_by_the_next(workshop):
    workshop.plan(steps=10_000)
    job_id = workshop.make_job()
    first = workshop.start_supervisor()
    workshop.wait_for_step(job_id, 2)
    first.kill()
    first.join()
    workshop.cancel(job_id)
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert job.state == "cancelled"
    assert not is_running(workshop.wait_for_worker())


def test_job_when_worker_says_nothing_for_too_long_is_ended(workshops):
    workshop = workshops(stall_timeout_s=5)  # longer than a busy machine takes to start a worker
    workshop.plan(hang_at=3)
    job_id = workshop.make_job()
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.charged_nanos) == ("error", 0)
    assert job.error_message == "the worker said nothing for 5 s and was ended"
    assert not is_running(workshop.wait_for_worker())


def test_job_when_journal_line_is_no_message_keeps_what_came_before_and_ends_in_error(workshop):
    workshop.plan(garbage_at=4, steps=1000)
    job_id = workshop.make_job()
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert job.state == "error"
    assert job.error_message.startswith("the worker's journal is damaged: ")
    assert workshop.list_steps(job_id) == [1, 2, 3]
    assert not is_running(workshop.wait_for_worker())


def test_job_when_checkpoint_is_not_what_was_announced_ends_in_error_and_keeps_no_row(workshop):
    workshop.plan(wrong_sha256=True, steps=1000)
    job_id = workshop.make_job()
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.charged_nanos) == ("error", 0)
    assert "checkpoints/step-3.tar.zst: its sha256 is" in job.error_message
    assert workshop.list_artifacts(job_id) == []
    assert list(workshop.store.list_keys("artifacts/")) == []
    assert not is_running(workshop.wait_for_worker())


def test_job_when_worker_announces_a_file_outside_its_directory_keeps_nothing_of_it(workshop):
    (workshop.path / "secret").write_text("the master key")
    workshop.plan(escape=True, steps=1000)
    job_id = workshop.make_job()
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert "outside the run directory" in job.error_message
    assert (workshop.path / "secret").read_text() == "the master key"
    assert list(workshop.store.list_keys("artifacts/")) == []


def test_job_when_store_is_full_for_a_while_waits_and_completes(workshop):
    job_id = workshop.make_job()
    with workshop.supervised(store=FailingStore(workshop.store, failures=2)):
        wait_for_end(workshop, job_id)
    workshop.assert_intact(job_id)


def test_job_when_store_stays_full_ends_in_error_that_says_so(workshop):
    workshop.plan(steps=1000)
    job_id = workshop.make_job()
    with workshop.supervised(store=FailingStore(workshop.store, failures=10_000), give_up_s=0.5):
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.error_kind, job.charged_nanos) == ("error", "disk", 0)
    assert "the server's disk is full" in job.error_message
    assert workshop.list_artifacts(job_id) == []


def test_job_when_disk_cannot_hold_the_run_ends_in_error_that_names_the_sizes(workshops):
    workshop = workshops(disk_reserve_bytes=10**18)
    job_id = workshop.make_job()
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.error_kind) == ("error", "disk")
    assert "1000000000.00 GB are kept in reserve" in job.error_message
    assert workshop.list_starts() == []


def test_job_when_base_model_is_gone_ends_in_error_that_names_it(workshop):
    job_id = workshop.make_job()
    workshop.settings.models_dir.rmdir()
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.error_kind) == ("error", "base_model")
    assert "luthier/tiny" in job.error_message


@pytest.mark.parametrize(("column", "part"), [("revision", "weights"), ("tokenizer_digest", "tokenizer")])
def test_job_when_its_model_is_another_than_was_priced_ends_in_error_that_says_so(workshop, column, part):
    job_id = workshop.make_job()
    with workshop.database.transaction() as tx:
        setattr(tx.get(BaseModelRow, MODEL), column, "f" * 64)
    with workshop.supervised():
        job = wait_for_end(workshop, job_id)
    assert (job.state, job.error_kind, job.charged_nanos) == ("error", "base_model", 0)
    assert f"the {part} of the base model changed since the job was priced: luthier/tiny" in job.error_message
    assert workshop.list_starts() == []


def test_job_when_another_cannot_be_started_goes_on(workshops):
    workshop = workshops(slots=2)
    unlucky, lucky = workshop.make_job(), workshop.make_job()
    (workshop.settings.runs_dir / unlucky).write_text("in the way of the run directory")
    with workshop.supervised(give_up_s=0.5):
        wait_for_end(workshop, lucky)
        assert wait_for_end(workshop, unlucky).state == "error"
    workshop.assert_intact(lucky)


def test_jobs_when_more_than_slots_run_no_more_at_once_than_slots(workshops):
    workshop = workshops(slots=2)
    workshop.plan(hang_at=2)
    job_ids = [workshop.make_job() for _ in range(3)]
    with workshop.supervised():
        for job_id in job_ids[:2]:
            workshop.wait_for_step(job_id, 1)
        assert workshop.get_job(job_ids[2]).state == "queued"
        workshop.plan()
        workshop.cancel(job_ids[0])
        wait_for_end(workshop, job_ids[2])
        assert workshop.get_job(job_ids[1]).state == "running"


def test_tick_when_many_pending_jobs_become_ready_moves_some_and_the_next_ticks_the_others(workshop):
    count = loop.PENDING_A_TICK + 10
    now = workshop.clock.now()
    with workshop.database.transaction() as tx:
        inputs = Inputs(make_model(tx, now=now), make_file(tx, workshop.principal, now=now, status="QUEUED"))
        for _ in range(count):
            make_job(tx, workshop.principal, now=now, state="pending", inputs=inputs)
        tx.get(File, inputs.training_file).processing_status = "COMPLETED"
        make_tokenization(tx, workshop.principal, inputs.training_file, now=now)
    supervisor = workshop.make_supervisor()
    supervisor.tick()
    assert count_pending(workshop) == 10
    supervisor.tick()
    assert count_pending(workshop) == 0
    supervisor.close()


def count_pending(workshop):
    with workshop.database.read() as tx:
        return len(service.list_pending(tx))


def test_tick_when_repeated_changes_nothing(workshop):
    workshop.plan(hang_at=4)
    job_id = workshop.make_job()
    supervisor = workshop.make_supervisor()

    tick_until(supervisor, lambda: workshop.list_artifacts(job_id))
    before = (workshop.get_job(job_id), workshop.list_events(job_id), workshop.list_steps(job_id))
    for _ in range(20):
        supervisor.tick()
    assert (workshop.get_job(job_id), workshop.list_events(job_id), workshop.list_steps(job_id)) == before
    supervisor.close()


def test_change_when_loading_it_failed_is_seen_at_the_next_look(workshop):
    workshop.plan(hang_at=3, steps=1000)
    workshop.database = database = Unreadable(workshop.database.url)
    job_id = workshop.make_job()
    supervisor = workshop.make_supervisor()
    for beat in ("_look", "_heartbeat", "_adoption"):  # nothing but the change itself makes it look
        setattr(supervisor, beat, Beat(3600.0))
    tick_until(supervisor, lambda: workshop.get_job(job_id).step > 1)
    workshop.cancel(job_id)
    database.is_down = True
    supervisor.tick()
    database.is_down = False
    tick_until(supervisor, lambda: workshop.get_job(job_id).state == "cancelled")
    supervisor.close()


class Unreadable(Database):
    """A database that can be read at times only."""

    is_down = False

    @contextlib.contextmanager
    def read(self):
        if self.is_down:
            raise OSError("the connection was refused")
        with super().read() as tx:
            yield tx


def test_run_when_another_supervisor_has_the_home_raises_conflict(workshop, stop_event):
    first = workshop.start_supervisor()
    wait_until((workshop.path / "supervisor.id").exists, what="the first supervisor has started")
    with pytest.raises(Conflict, match="in use by another luthier supervisor"):
        loop.run(workshop.settings, stop=stop_event)
    first.terminate()


def test_worker_when_started_sees_nothing_of_the_supervisors_environment(workshop, monkeypatch):
    monkeypatch.setenv("LUTHIER_DATABASE_URL", "postgresql://user:canary-1@db/luthier")
    monkeypatch.setenv("HF_TOKEN", "canary-2")
    monkeypatch.setenv("HTTPS_PROXY", "http://canary-3")
    workshop.plan(hang_at=2)
    workshop.make_job()
    with workshop.supervised():
        worker = workshop.wait_for_worker()
        environ = Path(f"/proc/{worker}/environ").read_text()
        assert os.getsid(worker) == worker
    assert "canary" not in environ
    assert "LUTHIER" not in environ
    assert f"HOME={workshop.settings.runs_dir}" in environ


def test_job_on_either_database_completes_with_every_event_once(home, database):
    workshop = Workshop(home, database_url=database.url)
    job_id = workshop.make_job()
    with workshop.supervised():
        wait_for_end(workshop, job_id)
    workshop.assert_intact(job_id)
    workshop.close()
