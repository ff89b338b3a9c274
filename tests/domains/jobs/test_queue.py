from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa

from factories import LEASE_S, OWNER, POLICY, make_inputs, make_job, make_principal, make_request
from luthier.jobs import log, progress, queue, service
from luthier.jobs.queue import LeaseLost
from luthier.jobs.schemas import Outcome, ProgressUpdate
from luthier.jobs.tables import Job


@pytest.fixture
def principal(database, clock):
    with database.transaction() as tx:
        return make_principal(tx, now=clock.now())


def make_queued(database, clock, principal, count):
    ids = []
    with database.transaction() as tx:
        inputs = make_inputs(tx, principal, now=clock.now())
        for seed in range(count):
            clock.advance(1)
            request = make_request(inputs, random_seed=seed)
            ids.append(service.create(tx, principal, request, policy=POLICY, now=clock.now(), idempotency_key=None).id)
    return ids


def claim(database, clock, owner=OWNER):
    with database.transaction() as tx:
        return queue.claim(tx, owner=owner, lease_s=LEASE_S, now=clock.now())


def test_claim_takes_the_oldest_job_and_starts_it(database, clock, principal):
    first, second = make_queued(database, clock, principal, 2)
    taken = claim(database, clock)
    assert taken.job_id == first
    assert (taken.token, taken.state, taken.started_at) == (1, "running", clock.now())
    assert taken.hyperparameters.random_seed == 0
    with database.read() as tx:
        job = service.get_job(tx, principal.project_id, first)
        last = log.list_events(tx, first)[-1]
    assert (job.state, job.started_at) == ("running", clock.now())
    assert (last.type, last.message) == ("job_start", "Job started at 2026-01-01T12:00:02Z")
    assert claim(database, clock).job_id == second


def test_claim_when_nothing_is_queued_returns_none(database, clock, principal):
    with database.transaction() as tx:
        make_job(tx, principal, now=clock.now(), state="pending")
    assert claim(database, clock) is None


def test_queue_depth_counts_the_jobs_ahead_of_all_projects(database, clock, principal):
    with database.transaction() as tx:
        other = make_principal(tx, now=clock.now())
    mine = make_queued(database, clock, principal, 2)
    theirs = make_queued(database, clock, other, 1)
    later = make_queued(database, clock, principal, 1)
    with database.read() as tx:
        assert [service.get_job(tx, principal.project_id, job).queue_depth for job in mine + later] == [0, 1, 3]
        assert [job.queue_depth for job in service.list_jobs(tx, principal.project_id)] == [0, 1, 3]
        assert service.get_job(tx, other.project_id, theirs[0]).queue_depth == 2
    claim(database, clock)
    with database.read() as tx:
        assert [job.queue_depth for job in service.list_jobs(tx, principal.project_id)] == [None, 0, 2]


def test_supervisors_that_claim_at_the_same_time_get_each_job_once(database, clock, principal):
    jobs = make_queued(database, clock, principal, 20)
    taken: list[str] = []
    start = threading.Barrier(4)

    def work(owner: str) -> None:
        start.wait()
        while (one := claim(database, clock, owner)) is not None:
            taken.append(one.job_id)

    threads = [threading.Thread(target=work, args=(f"supervisor-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(jobs)


def test_renew_keeps_the_lease_of_whoever_has_the_token(database, clock, principal):
    make_queued(database, clock, principal, 1)
    taken = claim(database, clock)

    def renew(token):
        with database.transaction() as tx:
            return queue.renew(tx, taken.job_id, token=token, lease_s=LEASE_S, now=clock.now())

    assert renew(taken.token) is True
    assert renew(taken.token + 1) is False
    assert renew(taken.token - 1) is False


def test_lease_that_is_renewed_is_not_adopted(database, clock, principal):
    make_queued(database, clock, principal, 1)
    taken = claim(database, clock)
    clock.advance(LEASE_S - 1)
    with database.transaction() as tx:
        queue.renew(tx, taken.job_id, token=taken.token, lease_s=LEASE_S, now=clock.now())
    clock.advance(LEASE_S - 1)
    with database.transaction() as tx:
        assert queue.adopt(tx, owner="supervisor-2", lease_s=LEASE_S, now=clock.now()) == []


def test_adopt_takes_what_this_owner_left_behind_at_once(database, clock, principal):
    make_queued(database, clock, principal, 1)
    taken = claim(database, clock)
    with database.transaction() as tx:
        (adopted,) = queue.adopt(tx, owner=OWNER, lease_s=LEASE_S, now=clock.now())
    assert (adopted.job_id, adopted.token) == (taken.job_id, taken.token + 1)


def test_adopt_leaves_what_the_caller_holds(database, clock, principal):
    make_queued(database, clock, principal, 2)
    held, lost = claim(database, clock), claim(database, clock)
    with database.transaction() as tx:
        adopted = queue.adopt(tx, owner=OWNER, lease_s=LEASE_S, now=clock.now(), held={held.job_id})
    assert [one.job_id for one in adopted] == [lost.job_id]
    with database.transaction() as tx:
        queue.require_lease(tx, held.job_id, held.token)


def test_adopt_takes_anothers_job_only_when_its_lease_ran_out(database, clock, principal):
    make_queued(database, clock, principal, 1)
    taken = claim(database, clock)

    def adopt():
        with database.transaction() as tx:
            return queue.adopt(tx, owner="supervisor-2", lease_s=LEASE_S, now=clock.now())

    assert adopt() == []
    clock.advance(LEASE_S)
    (adopted,) = adopt()
    assert adopted.token == taken.token + 1
    with database.read() as tx:
        assert [one.job_id for one in queue.list_held(tx, "supervisor-2")] == [taken.job_id]
        assert queue.list_held(tx, OWNER) == []


def test_supervisors_that_adopt_at_the_same_time_get_each_job_once(database, clock, principal):
    jobs = make_queued(database, clock, principal, 6)
    for _ in jobs:
        claim(database, clock)
    clock.advance(LEASE_S)
    adopted: list[tuple[str, int]] = []
    start = threading.Barrier(3)

    def work(owner: str) -> None:
        start.wait()
        with database.transaction() as tx:
            taken = queue.adopt(tx, owner=owner, lease_s=LEASE_S, now=clock.now())
        adopted.extend((one.job_id, one.token) for one in taken)

    threads = [threading.Thread(target=work, args=(f"new-{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(adopted) == sorted((job, 2) for job in jobs)


def read_everything(database, principal, job_id):
    with database.read() as tx:
        return (
            service.get_job(tx, principal.project_id, job_id),
            log.list_events(tx, job_id),
            log.list_metrics(tx, job_id),
        )


WRITES = {
    "record": lambda tx, id, token, now: progress.record(tx, id, token, ProgressUpdate(step=9, heard_at=now), now=now),
    "move": lambda tx, id, token, now: progress.move(tx, id, token, "compressing", "model_compressing", "x", now=now),
    "settle": lambda tx, id, token, now: progress.settle(tx, id, token, Outcome(state="error", message="x"), now=now),
    "require": lambda tx, id, token, now: queue.require_lease(tx, id, token),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_write_with_an_old_token_changes_nothing(database, clock, principal, write):
    make_queued(database, clock, principal, 1)
    old = claim(database, clock)
    clock.advance(LEASE_S)
    with database.transaction() as tx:
        (new,) = queue.adopt(tx, owner="supervisor-2", lease_s=LEASE_S, now=clock.now())
    before = read_everything(database, principal, old.job_id)
    clock.advance(1)
    with pytest.raises(LeaseLost, match=f"token {old.token} holds no lease"), database.transaction() as tx:
        write(tx, old.job_id, old.token, clock.now())
    assert read_everything(database, principal, old.job_id) == before
    with database.transaction() as tx:
        assert queue.renew(tx, old.job_id, token=old.token, lease_s=LEASE_S, now=clock.now()) is False
        write(tx, new.job_id, new.token, clock.now())  # the one who holds it may


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_write_after_the_end_changes_nothing(database, clock, principal, write):
    make_queued(database, clock, principal, 1)
    taken = claim(database, clock)
    with database.transaction() as tx:
        progress.settle(tx, taken.job_id, taken.token, Outcome(state="error", message="x"), now=clock.now())
    before = read_everything(database, principal, taken.job_id)
    with pytest.raises(LeaseLost, match="state error"), database.transaction() as tx:
        write(tx, taken.job_id, taken.token, clock.now())
    assert read_everything(database, principal, taken.job_id) == before


def test_require_lease_when_job_is_unknown_raises(database):
    with pytest.raises(LeaseLost, match="unknown"), database.transaction() as tx:
        queue.require_lease(tx, "ft-nothing", 1)


def test_two_writers_with_one_token_each_wait_for_the_other(database, clock, principal):
    # The lock taken by require_lease holds until the transaction ends, so no update is lost between them.
    make_queued(database, clock, principal, 1)
    taken = claim(database, clock)

    def add_ten():
        for _ in range(10):
            with database.transaction() as tx:
                queue.require_lease(tx, taken.job_id, taken.token)
                (held,) = queue.list_held(tx, OWNER)
                update = ProgressUpdate(tokens_done=held.tokens_done + 1)
                progress.record(tx, taken.job_id, taken.token, update, now=clock.now())

    threads = [threading.Thread(target=add_ten) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as tx:
        assert service.get_job(tx, principal.project_id, taken.job_id).tokens_done == 30


def test_lease_ends_when_it_was_said_to(database, clock, principal):
    make_queued(database, clock, principal, 1)
    claim(database, clock)
    almost = clock.now() + timedelta(seconds=LEASE_S) - timedelta(microseconds=1)
    with database.transaction() as tx:
        assert queue.adopt(tx, owner="supervisor-2", lease_s=LEASE_S, now=almost) == []


def make_unreadable(database, job_id):
    with database.transaction() as tx:
        tx.execute(sa.update(Job).where(Job.id == job_id).values(hyperparameters={}))


def test_claim_when_a_row_cannot_be_read_ends_that_job_and_takes_the_next(database, clock, principal):
    broken, fine = make_queued(database, clock, principal, 2)
    make_unreadable(database, broken)
    assert claim(database, clock).job_id == fine
    with database.read() as tx:
        row, last = tx.get(Job, broken), log.list_events(tx, broken)[-1]
    assert (row.state, row.error_kind, row.charged_nanos) == ("error", "platform", 0)
    assert "cannot read what it kept of the job" in last.message


def test_adopt_when_a_row_cannot_be_read_ends_that_job_and_takes_the_others(database, clock, principal):
    broken, fine = make_queued(database, clock, principal, 2)
    claim(database, clock)
    claim(database, clock)
    make_unreadable(database, broken)
    with database.transaction() as tx:
        assert [held.job_id for held in queue.list_held(tx, OWNER)] == [fine]
        assert [taken.job_id for taken in adopt(tx, clock)] == [fine]
        assert tx.get(Job, broken).state == "error"


def adopt(tx, clock):
    return queue.adopt(tx, owner=OWNER, lease_s=LEASE_S, now=clock.now())
