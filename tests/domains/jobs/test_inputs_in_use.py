"""Files and models that go away while a job is created: either the job is seen, or the create is refused."""

from __future__ import annotations

import threading

import pytest

from factories import POLICY, make_inputs, make_principal, make_request
from luthier.catalog import service as catalog
from luthier.catalog.tables import BaseModelRow
from luthier.errors import NotFound
from luthier.files import service as files
from luthier.jobs import service


@pytest.fixture
def principal(database, clock):
    with database.transaction() as tx:
        return make_principal(tx, now=clock.now())


@pytest.fixture
def inputs(database, clock, principal):
    with database.transaction() as tx:
        return make_inputs(tx, principal, now=clock.now())


def create(tx, principal, inputs, clock):
    return service.create(tx, principal, make_request(inputs), policy=POLICY, now=clock.now(), idempotency_key=None)


def is_waiting(thread: threading.Thread) -> bool:
    thread.join(0.3)
    return thread.is_alive()


def test_file_when_deleted_while_a_job_is_created_from_it_is_seen_to_be_in_use(database, clock, principal, inputs):
    seen = []

    def look_before_deleting() -> None:
        with database.transaction() as tx:
            files.require_deletable(tx, principal.project_id, inputs.training_file)
            seen.append(service.find_live_job_using_file(tx, inputs.training_file))

    deleting = threading.Thread(target=look_before_deleting)
    with database.transaction() as tx:
        job = create(tx, principal, inputs, clock)
        deleting.start()
        assert is_waiting(deleting)
    deleting.join()
    assert seen == [job.id]


def test_create_while_its_file_is_deleted_is_refused(database, clock, principal, inputs):
    refusals = []

    def create_late() -> None:
        try:
            with database.transaction() as tx:
                create(tx, principal, inputs, clock)
        except NotFound as refusal:
            refusals.append(refusal.code)

    creating = threading.Thread(target=create_late)
    with database.transaction() as tx:
        files.require_deletable(tx, principal.project_id, inputs.training_file)
        files.delete_file(tx, principal.project_id, inputs.training_file, now=clock.now())
        creating.start()
        assert is_waiting(creating)
    creating.join()
    assert refusals == ["file_not_found"]


def test_model_when_removed_while_a_job_is_created_with_it_is_seen_to_be_in_use(database, clock, principal, inputs):
    with database.transaction() as tx:
        tx.get(BaseModelRow, inputs.model).is_builtin = 0
    seen = []

    def look_before_removing() -> None:
        with database.transaction() as tx:
            catalog.require_removable(tx, inputs.model)
            seen.append(service.find_live_job_using_model(tx, inputs.model))

    removing = threading.Thread(target=look_before_removing)
    with database.transaction() as tx:
        job = create(tx, principal, inputs, clock)
        removing.start()
        assert is_waiting(removing)
    removing.join()
    assert seen == [job.id]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_two_creates_from_one_file_do_not_wait_for_each_other(database, clock, principal, inputs):
    with database.transaction() as first, database.transaction() as second:
        for tx in (first, second):
            files.keep_file(tx, principal.project_id, inputs.training_file)
