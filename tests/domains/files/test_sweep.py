from __future__ import annotations

import pytest

from luthier.errors import NotFound
from luthier.files import service, sweep
from luthier.files.names import FileRequest
from luthier.storage import MemoryStore

DAY_S = 24 * 3600
REQUEST = FileRequest(filename="train.jsonl", purpose="fine-tune", file_type="jsonl", sha256=None)


@pytest.fixture
def store():
    return MemoryStore()


def begin(database, clock, project_id):
    with database.transaction() as tx:
        return service.create_upload(
            tx,
            upload_id=service.make_upload_id(),
            project_id=project_id,
            request=REQUEST,
            ttl_s=3600,
            now=clock.now(),
        )


def put(store, upload) -> str:
    key = service.make_object_key(upload.id)
    store.put_bytes(key, b"bytes")
    return key


def complete(database, clock, upload, key):
    with database.transaction() as tx:
        return service.complete_upload(tx, upload.id, object_key=key, size_bytes=5, sha256="ab" * 32, now=clock.now())


def run(database, store, clock):
    return sweep.sweep(database, store, now=clock.now())


def test_sweep_leaves_files_and_uploads_on_their_way(database, clock, store, project_id):
    upload = begin(database, clock, project_id)
    kept = put(store, upload)
    complete(database, clock, upload, kept)
    on_its_way = put(store, begin(database, clock, project_id))
    assert run(database, store, clock).objects == 0
    assert set(store.list_keys("")) == {kept, on_its_way}


def test_sweep_removes_what_a_crash_between_bytes_and_row_left(database, clock, store, project_id):
    orphan = put(store, begin(database, clock, project_id))
    clock.advance(3600 + DAY_S)
    assert run(database, store, clock).objects == 0
    clock.advance(1)
    swept = run(database, store, clock)
    assert (swept.uploads, swept.objects) == (1, 1)
    assert orphan not in set(store.list_keys(""))


def test_sweep_removes_the_attempt_that_lost_and_keeps_the_one_that_won(database, clock, store, project_id):
    upload = begin(database, clock, project_id)
    won = put(store, upload)
    put(store, upload)
    complete(database, clock, upload, won)
    run(database, store, clock)
    assert set(store.list_keys("")) == {won}


def test_sweep_keeps_a_file_for_good_after_its_upload_is_forgotten(database, clock, store, project_id):
    upload = begin(database, clock, project_id)
    key = put(store, upload)
    complete(database, clock, upload, key)
    clock.advance(400 * DAY_S)
    assert run(database, store, clock).uploads == 1
    run(database, store, clock)
    assert set(store.list_keys("")) == {key}


def test_sweep_removes_the_bytes_of_a_deleted_file_after_an_hour(database, clock, store, project_id):
    upload = begin(database, clock, project_id)
    key = put(store, upload)
    complete(database, clock, upload, key)
    with database.transaction() as tx:
        service.delete_file(tx, project_id, upload.id, now=clock.now())
    clock.advance(3599)
    run(database, store, clock)
    assert set(store.list_keys("")) == {key}
    clock.advance(1)
    run(database, store, clock)
    assert set(store.list_keys("")) == set()


def test_upload_that_outlived_the_sweep_makes_no_row_without_bytes(database, clock, store, project_id):
    upload = begin(database, clock, project_id)
    key = put(store, upload)
    clock.advance(3601 + DAY_S)
    run(database, store, clock)
    with pytest.raises(service.UploadGone):
        complete(database, clock, upload, key)
    with pytest.raises(NotFound), database.read() as tx:
        service.get_file(tx, project_id, upload.id)


def test_sweep_touches_nothing_but_files(database, clock, store):
    store.put_bytes("artifacts/job/model", b"bytes")
    run(database, store, clock)
    assert set(store.list_keys("")) == {"artifacts/job/model"}


def test_sweep_of_more_than_a_batch_removes_all(database, clock, store, project_id):
    for _ in range(sweep.BATCH + 10):
        store.put_bytes(service.make_object_key(service.make_upload_id()), b"")
    kept = put(store, begin(database, clock, project_id))
    assert run(database, store, clock).objects == sweep.BATCH + 10
    assert set(store.list_keys("")) == {kept}
