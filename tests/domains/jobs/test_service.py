from __future__ import annotations

import pytest

from factories import OWNER, POLICY, make_inputs, make_job, make_principal, make_request
from luthier.errors import Conflict, InvalidRequest, NotFound
from luthier.jobs import log, queue, service, states, supervisors
from luthier.jobs.schemas import MetricView

WORKER_STATES = sorted(states.LEASED - {"cancel_requested"})


@pytest.fixture
def principal(database, clock):
    with database.transaction() as tx:
        return make_principal(tx, now=clock.now())


@pytest.mark.parametrize("state", ["pending", "queued"])
def test_cancel_when_no_worker_has_the_job_ends_it_at_once(database, clock, principal, state):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now(), state=state)
        job = service.cancel(tx, principal.project_id, job.id, now=clock.now())
        last = log.list_events(tx, job.id)[-1]
    assert (job.state, job.charged_nanos, job.finished_at) == ("cancelled", 0, clock.now())
    assert job.why == "Cancelled before the first step; nothing was charged"
    assert last.type == "job_stopped"


@pytest.mark.parametrize("state", WORKER_STATES)
def test_cancel_when_a_worker_has_the_job_asks_for_its_end(database, clock, principal, state):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now(), state=state)
        job = service.cancel(tx, principal.project_id, job.id, now=clock.now())
        (held,) = queue.list_held(tx, OWNER)
    assert (job.state, job.cancel_requested_at) == ("cancel_requested", clock.now())
    assert (held.state, held.cancel_requested_at) == ("cancel_requested", clock.now())


def test_cancel_twice_is_as_good_as_once(database, clock, principal):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now(), state="running")
        service.cancel(tx, principal.project_id, job.id, now=clock.now())
        events = log.list_events(tx, job.id)
        asked_at = clock.now()
        clock.advance(5)
        job = service.cancel(tx, principal.project_id, job.id, now=clock.now())
        assert log.list_events(tx, job.id) == events
    assert job.cancel_requested_at == asked_at


@pytest.mark.parametrize("state", sorted(states.TERMINAL))
def test_cancel_when_the_job_is_over_is_refused(database, clock, principal, state):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now(), state=state)
    with pytest.raises(InvalidRequest, match=f"it is {state}"), database.transaction() as tx:
        service.cancel(tx, principal.project_id, job.id, now=clock.now())


def test_delete_when_the_job_is_over_hides_it(database, clock, principal):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now(), state="completed")
        service.delete(tx, principal.project_id, job.id, force=False, now=clock.now())
        assert service.list_jobs(tx, principal.project_id) == []
        for act in (service.get_job, lambda *args: service.cancel(*args, now=clock.now())):
            with pytest.raises(NotFound):
                act(tx, principal.project_id, job.id)


@pytest.mark.parametrize("state", sorted(states.LIVE))
def test_delete_when_the_job_is_live_needs_force(database, clock, principal, state):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now(), state=state)
    with pytest.raises(Conflict, match=f"is {state}"), database.transaction() as tx:
        service.delete(tx, principal.project_id, job.id, force=False, now=clock.now())


def test_delete_by_force_of_a_job_that_a_worker_has_also_cancels_it(database, clock, principal):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now(), state="running")
        service.delete(tx, principal.project_id, job.id, force=True, now=clock.now())
        (held,) = queue.list_held(tx, OWNER)
        assert held.state == "cancel_requested"
        with pytest.raises(NotFound):
            service.get_job(tx, principal.project_id, job.id)


def test_delete_by_force_of_a_queued_job_takes_it_from_the_queue(database, clock, principal):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now())
        service.delete(tx, principal.project_id, job.id, force=True, now=clock.now())
        assert queue.claim(tx, owner=OWNER, lease_s=30, now=clock.now()) is None


def test_another_projects_job_is_not_there_for_any_call(database, clock, principal):
    with database.transaction() as tx:
        other = make_principal(tx, now=clock.now())
        job = make_job(tx, principal, now=clock.now())
        assert service.list_jobs(tx, other.project_id) == []
        assert service.find_base_model(tx, other.project_id, job.id) is None
        assert service.find_base_model(tx, other.project_id, job.output_name) is None
        for act in (
            lambda: service.get_job(tx, other.project_id, job.id),
            lambda: service.cancel(tx, other.project_id, job.id, now=clock.now()),
            lambda: service.delete(tx, other.project_id, job.id, force=True, now=clock.now()),
            lambda: service.list_jobs(tx, other.project_id, after=job.id),
        ):
            with pytest.raises(NotFound, match="no job"):
                act()
        assert service.get_job(tx, principal.project_id, job.id).state == "queued"


def test_list_jobs_in_pages_gives_each_job_once_oldest_first(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now())
        made = []
        for seed in range(7):
            clock.advance(seed % 2)  # some at the very same moment
            request = make_request(inputs, random_seed=seed)
            made.append(service.create(tx, principal, request, policy=POLICY, now=clock.now(), idempotency_key=None))
    expected = [job.id for job in sorted(made, key=lambda job: (job.created_at, job.id))]
    with database.read() as tx:
        assert [job.id for job in service.list_jobs(tx, principal.project_id)] == expected
        pages, after = [], None
        while page := service.list_jobs(tx, principal.project_id, limit=3, after=after):
            pages += [job.id for job in page]
            after = page[-1].id
    assert pages == expected


def test_find_base_model_knows_jobs_and_output_models(database, clock, principal):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now())
        for name in (job.id, job.output_name):
            assert service.find_base_model(tx, principal.project_id, name) == job.base_model
        assert service.find_base_model(tx, principal.project_id, "luthier/tiny") is None


def test_file_is_in_use_while_a_job_that_names_it_is_live(database, clock, principal):
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now(), validation_tokens=10)
        job = make_job(tx, principal, now=clock.now(), inputs=inputs)
        assert service.find_live_job_using_file(tx, inputs.training_file) == job.id
        assert service.find_live_job_using_file(tx, inputs.validation_file) == job.id
        service.cancel(tx, principal.project_id, job.id, now=clock.now())
        assert service.find_live_job_using_file(tx, inputs.training_file) is None


def test_count_by_state_counts_live_jobs(database, clock, principal):
    with database.transaction() as tx:
        for state in ("running", "completed", "pending", "queued", "queued"):
            make_job(tx, principal, now=clock.now(), state=state)
        assert service.count_by_state(tx) == {"running": 1, "pending": 1, "queued": 2}


def test_why_when_no_supervisor_is_alive_names_the_way_out(database, clock, principal):
    def ask(job):
        with database.read() as tx:
            return service.get_job(tx, principal.project_id, job.id, now=clock.now()).why

    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now())
        over = make_job(tx, principal, now=clock.now(), state="pending")
        service.cancel(tx, principal.project_id, over.id, now=clock.now())
    assert "no supervisor is running" in ask(job)
    assert "luthier supervise" in ask(job)
    assert "supervisor" not in ask(over)
    with database.transaction() as tx:
        supervisors.heartbeat(tx, id="s1", host="h", pid=1, slots=2, now=clock.now())
    assert ask(job) == "Next in the queue, waiting for a slot of 2 to be free"
    clock.advance(supervisors.ALIVE_S + 1)
    assert "no supervisor is running" in ask(job)


def test_heartbeat_of_a_new_process_starts_anew(database, clock):
    with database.transaction() as tx:
        supervisors.heartbeat(tx, id="s1", host="h", pid=1, slots=2, now=clock.now())
    begun = clock.now()
    clock.advance(10)
    with database.transaction() as tx:
        supervisors.heartbeat(tx, id="s1", host="h", pid=1, slots=2, now=clock.now())
        (alive,) = supervisors.list_alive(tx, now=clock.now())
    assert (alive.started_at, alive.seen_at, alive.pid) == (begun, clock.now(), 1)
    with database.transaction() as tx:
        supervisors.heartbeat(tx, id="s1", host="h", pid=2, slots=3, now=clock.now())
        (alive,) = supervisors.list_alive(tx, now=clock.now())
    assert (alive.started_at, alive.pid, alive.slots) == (clock.now(), 2, 3)


def test_events_are_numbered_without_gaps_and_read_from_any_place(database, clock, principal):
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now())
        assert log.append(tx, job.id, "warning", "one", now=clock.now(), level="warning", step=4, data={"a": 1}) == 3
    with pytest.raises(RuntimeError), database.transaction() as tx:
        log.append(tx, job.id, "warning", "never", now=clock.now())
        raise RuntimeError
    with database.transaction() as tx:
        assert log.append(tx, job.id, "warning", "two", now=clock.now()) == 4
    with database.read() as tx:
        events = log.list_events(tx, job.id)
        assert [event.seq for event in events] == [1, 2, 3, 4]
        assert (events[2].message, events[2].level, events[2].step, events[2].data) == ("one", "warning", 4, {"a": 1})
        assert log.list_events(tx, job.id, after=2, limit=1) == events[2:3]


def make_metrics(clock, count, kind="train"):
    for step in range(1, count + 1):
        clock.advance(1)
        yield MetricView(
            logged_at=clock.now(), kind=kind, step=step, epoch=step / 4, loss=2.5 / step, grad_norm=0.5,
            learning_rate=1e-5, tokens=512, step_s=0.1,
        )  # fmt: skip


def test_metrics_come_back_as_they_were_logged_and_by_every_bound(database, clock, principal):
    start = clock.now()
    with database.transaction() as tx:
        job = make_job(tx, principal, now=clock.now(), state="running")
        first = list(make_metrics(clock, 4))
        log.append_metrics(tx, job.id, first)
        log.append_metrics(tx, job.id, [])
        second = list(make_metrics(clock, 2, kind="eval"))
        log.append_metrics(tx, job.id, second)
    with database.read() as tx:
        kept = log.list_metrics(tx, job.id)
        assert [metric.seq for metric in kept] == [1, 2, 3, 4, 5, 6]
        assert [(one.logged_at, one.kind, one.step, one.loss) for one in kept] == [
            (one.logged_at, one.kind, one.step, one.loss) for one in first + second
        ]
        assert [one.seq for one in log.list_metrics(tx, job.id, after=4)] == [5, 6]
        assert [one.seq for one in log.list_metrics(tx, job.id, step_from=2, step_to=3)] == [2, 3, 6]
        assert [one.seq for one in log.list_metrics(tx, job.id, limit=2)] == [1, 2]
        assert [one.seq for one in log.list_metrics(tx, job.id, logged_from=kept[1].logged_at)] == [2, 3, 4, 5, 6]
        assert [one.seq for one in log.list_metrics(tx, job.id, logged_to=kept[1].logged_at)] == [1, 2]
        assert log.list_metrics(tx, job.id, logged_to=start) == []
