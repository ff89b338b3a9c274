from __future__ import annotations

import threading

import pytest

from factories import POLICY, make_inputs, make_principal, make_request
from luthier.errors import InvalidRequest, Unprocessable
from luthier.jobs import log, repeats, service


@pytest.fixture
def principal(database, clock):
    with database.transaction() as tx:
        return make_principal(tx, now=clock.now())


@pytest.fixture
def request_body(database, clock, principal):
    with database.transaction() as tx:
        return make_request(make_inputs(tx, principal, now=clock.now()))


@pytest.fixture
def create(database, clock, principal, request_body):
    def create(*, key=None, body=request_body, who=principal, is_retry=False):
        with database.transaction() as tx:
            return service.create(tx, who, body, policy=POLICY, now=clock.now(), idempotency_key=key, is_retry=is_retry)

    return create


def confirm(database, clock, job):
    with database.transaction() as tx:
        service.confirm_delivered(tx, job.id, now=clock.now())


def test_same_key_returns_the_first_job_for_a_day(database, clock, create):
    first = create(key="k1")
    confirm(database, clock, first)
    clock.advance(repeats.KEY_TTL_S - 1)
    assert create(key="k1").id == first.id
    clock.advance(2)
    assert create(key="k1").id != first.id


def test_another_key_makes_another_job(create):
    assert create(key="k1").id != create(key="k2").id


def test_same_key_with_another_body_is_refused(create, request_body):
    from dataclasses import replace

    create(key="k1")
    with pytest.raises(Unprocessable, match="k1"):
        create(key="k1", body=replace(request_body, n_epochs=2))


def test_same_key_of_another_api_key_is_another_job(database, clock, create):
    with database.transaction() as tx:
        other = make_principal(tx, now=clock.now())
        body = make_request(make_inputs(tx, other, now=clock.now()))
    assert create(key="k1").id != create(key="k1", who=other, body=body).id


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_key_of_impossible_length_is_refused(create, key):
    with pytest.raises(InvalidRequest, match="1 to 255 characters"):
        create(key=key)


def test_same_body_when_the_answer_may_be_lost_returns_the_first_job(database, clock, create):
    first = create()
    clock.advance(repeats.BODY_TTL_S - 1)
    again = create()
    assert again.id == first.id
    with database.read() as tx:
        assert [event.type for event in log.list_events(tx, first.id)] == ["job_pending", "job_queued"]


def test_same_body_after_a_minute_is_a_second_job(clock, create):
    first = create()
    clock.advance(repeats.BODY_TTL_S)
    assert create().id != first.id


def test_same_body_after_a_delivered_answer_is_a_second_job(database, clock, create):
    first = create()
    confirm(database, clock, first)
    second = create()
    assert second.id != first.id
    assert create().id == second.id  # whose answer may be lost in turn


def test_same_body_when_the_client_says_it_retries_returns_the_first_job(database, clock, create):
    # What left here in full may have been lost behind a proxy.
    first = create()
    confirm(database, clock, first)
    assert create(is_retry=True).id == first.id


def test_same_body_after_a_repeat_was_delivered_is_a_second_job(database, clock, create):
    first = create()
    confirm(database, clock, create())
    assert create().id != first.id


def test_same_body_when_the_first_job_was_cancelled_or_deleted_is_a_second_job(database, clock, create, principal):
    first = create()
    with database.transaction() as tx:
        service.cancel(tx, principal.project_id, first.id, now=clock.now())
    second = create()
    with database.transaction() as tx:
        service.delete(tx, principal.project_id, second.id, force=True, now=clock.now())
    third = create()
    assert len({first.id, second.id, third.id}) == 3


def test_same_body_with_another_value_is_a_second_job(create, request_body):
    from dataclasses import replace

    assert create().id != create(body=replace(request_body, random_seed=1)).id


def test_create_that_failed_is_not_remembered(create, request_body):
    from dataclasses import replace

    with pytest.raises(InvalidRequest):
        create(key="k1", body=replace(request_body, n_epochs=0))
    assert create(key="k1").state == "queued"


@pytest.mark.parametrize("key", [None, "k1"])
def test_same_create_from_many_threads_has_one_effect(database, create, principal, key):
    threads_count = 12
    start = threading.Barrier(threads_count)
    made, failed = [], []

    def send():
        start.wait()
        try:
            made.append(create(key=key).id)
        except Exception as error:  # noqa: BLE001  a thread's failure must reach the test
            failed.append(error)

    threads = [threading.Thread(target=send) for _ in range(threads_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(set(made)) == 1
    with database.read() as tx:
        assert len(service.list_jobs(tx, principal.project_id)) == 1
