from __future__ import annotations

import hashlib
import threading

import pytest

from luthier.errors import Conflict, Forbidden, NotFound
from luthier.files import service, signing
from luthier.files.names import FileRequest

MASTER_KEY = b"m" * 32
REPORT = {"valid": True, "nlines": 3}
SHA256 = hashlib.sha256(b"bytes").hexdigest()


def begin(database, clock, project_id, *, purpose="fine-tune", sha256=None, ttl_s=3600):
    request = FileRequest(filename="train.jsonl", purpose=purpose, file_type="jsonl", sha256=sha256)
    with database.transaction() as tx:
        return service.create_upload(
            tx,
            upload_id=service.make_upload_id(),
            project_id=project_id,
            request=request,
            ttl_s=ttl_s,
            now=clock.now(),
        )


def complete(database, clock, upload):
    with database.transaction() as tx:
        return service.complete_upload(
            tx,
            upload.id,
            object_key=service.make_object_key(upload.id),
            size_bytes=5,
            sha256=SHA256,
            now=clock.now(),
        )


def make_file(database, clock, project_id, **changes):
    return complete(database, clock, begin(database, clock, project_id, **changes))


def open_upload(database, clock, upload_id, token):
    with database.read() as tx:
        return service.open_upload(tx, upload_id, token, master_key=MASTER_KEY, now=clock.now())


def claim(database, clock, claim_s=60):
    with database.transaction() as tx:
        return service.claim_check(tx, now=clock.now(), claim_s=claim_s)


def get(database, file):
    with database.read() as tx:
        return service.get_file(tx, file.project_id, file.id)


def test_upload_with_its_token_opens_until_it_expires(database, clock, project_id):
    upload = begin(database, clock, project_id)
    token = signing.sign_upload(upload.id, upload.expires_at, MASTER_KEY)
    assert open_upload(database, clock, upload.id, token) == upload
    clock.advance(3600)
    with pytest.raises(service.UploadGone, match="expired at 2026-01-01 13:00:00 UTC"):
        open_upload(database, clock, upload.id, token)


def test_upload_with_any_other_token_is_forbidden(database, clock, project_id):
    upload, other = (begin(database, clock, project_id) for _ in range(2))
    forged = [
        "",
        "ä",
        signing.sign_upload(upload.id, upload.expires_at, b"x" * 32),
        signing.sign_upload(other.id, other.expires_at, MASTER_KEY),
        signing.sign_upload(upload.id, clock.now(), MASTER_KEY),
    ]
    for token in forged:
        with pytest.raises(Forbidden) as caught:
            open_upload(database, clock, upload.id, token)
        assert caught.value.code == "invalid_upload_url"
    with pytest.raises(Forbidden):
        open_upload(database, clock, "file-unknown", "token")


def test_upload_when_complete_is_a_file_with_the_same_id(database, clock, project_id):
    upload = begin(database, clock, project_id)
    file = complete(database, clock, upload)
    assert file.id == upload.id
    assert (file.processing_status, file.size_bytes, file.sha256) == ("QUEUED", 5, SHA256)
    assert get(database, file) == file


def test_upload_when_used_takes_no_second_file(database, clock, project_id):
    upload = begin(database, clock, project_id)
    file = complete(database, clock, upload)
    with pytest.raises(Conflict) as caught:
        complete(database, clock, upload)
    assert caught.value.code == "upload_used"
    token = signing.sign_upload(upload.id, upload.expires_at, MASTER_KEY)
    with pytest.raises(Conflict, match=file.id):
        open_upload(database, clock, upload.id, token)
    assert get(database, file) == file


def test_upload_completed_by_many_at_once_is_one_file(database, clock, project_id):
    upload = begin(database, clock, project_id)
    outcomes = []
    together = threading.Barrier(4)

    def attempt() -> None:
        together.wait(timeout=10)
        try:
            outcomes.append(complete(database, clock, upload).object_key)
        except Conflict:
            outcomes.append(None)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (key,) = [key for key in outcomes if key]
    assert outcomes.count(None) == 3
    with database.read() as tx:
        assert service.get_file(tx, project_id, upload.id).object_key == key


def test_file_of_another_project_is_not_found(database, clock, project_id, other_project_id):
    file = make_file(database, clock, project_id)
    with database.read() as tx:
        assert service.list_files(tx, other_project_id) == []
        assert service.find_file(tx, other_project_id, file.id) is None
        assert service.find_same_content(tx, other_project_id, sha256=SHA256, purpose="fine-tune") is None
    with pytest.raises(NotFound, match=file.id), database.read() as tx:
        service.get_file(tx, other_project_id, file.id)
    with pytest.raises(NotFound), database.transaction() as tx:
        service.delete_file(tx, other_project_id, file.id, now=clock.now())
    assert get(database, file) == file


def test_file_before_its_bytes_says_that_they_are_missing(database, clock, project_id, other_project_id):
    upload = begin(database, clock, project_id)
    with database.read() as tx:
        with pytest.raises(NotFound) as caught:
            service.get_file(tx, project_id, upload.id)
        assert caught.value.code == "file_incomplete"
        with pytest.raises(NotFound) as caught:
            service.get_file(tx, other_project_id, upload.id)
        assert caught.value.code == "file_not_found"


def test_file_when_deleted_is_gone_from_everywhere(database, clock, project_id):
    file = make_file(database, clock, project_id)
    with database.transaction() as tx:
        service.delete_file(tx, project_id, file.id, now=clock.now())
    with pytest.raises(NotFound):
        get(database, file)
    assert claim(database, clock) is None
    with database.read() as tx:
        assert service.list_files(tx, project_id) == []
        assert service.find_same_content(tx, project_id, sha256=SHA256, purpose="fine-tune") is None


def test_same_content_for_another_purpose_is_another_file(database, clock, project_id):
    file = make_file(database, clock, project_id)
    with database.read() as tx:
        assert service.find_same_content(tx, project_id, sha256=SHA256, purpose="eval") is None
        assert service.find_same_content(tx, project_id, sha256=SHA256, purpose="fine-tune") == file


def test_check_is_claimed_oldest_first_and_once(database, clock, project_id):
    first = make_file(database, clock, project_id)
    clock.advance(1)
    second = make_file(database, clock, project_id)
    assert [claim(database, clock).file_id for _ in range(2)] == [first.id, second.id]
    assert claim(database, clock) is None
    assert get(database, first).processing_status == "RUNNING"


def test_check_claimed_by_many_at_once_goes_to_one(database, clock, project_id):
    file = make_file(database, clock, project_id)
    orders = []
    together = threading.Barrier(4)

    def attempt() -> None:
        together.wait(timeout=10)
        orders.append(claim(database, clock))

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [order.file_id for order in orders if order] == [file.id]


def test_check_for_another_purpose_is_not_claimed(database, clock, project_id):
    file = make_file(database, clock, project_id, purpose="eval")
    assert file.processing_status == "PENDING"
    assert claim(database, clock) is None


def test_check_when_its_claim_ran_out_is_claimed_again_unless_renewed(database, clock, project_id):
    file = make_file(database, clock, project_id)
    claim(database, clock, claim_s=60)
    clock.advance(59)
    with database.transaction() as tx:
        service.renew_check(tx, file.id, now=clock.now(), claim_s=60)
    clock.advance(59)
    assert claim(database, clock) is None
    clock.advance(1)
    assert claim(database, clock).file_id == file.id


def test_check_that_dies_three_times_fails_and_the_next_file_goes_on(database, clock, project_id):
    file = make_file(database, clock, project_id)
    clock.advance(1)
    for _ in range(service.CHECK_ATTEMPTS_MAX):
        assert claim(database, clock).file_id == file.id
        clock.advance(61)
    following = make_file(database, clock, project_id)
    assert claim(database, clock).file_id == following.id
    failed = get(database, file)
    assert failed.processing_status == "FAILED"
    assert "3 times" in failed.failure
    assert failed.report is None


@pytest.mark.parametrize(("valid", "status"), [(True, "COMPLETED"), (False, "INVALID_FORMAT")])
def test_check_when_recorded_shows_its_result(database, clock, project_id, valid, status):
    file = make_file(database, clock, project_id)
    claim(database, clock)
    with database.transaction() as tx:
        service.record_check(tx, file.id, {**REPORT, "valid": valid}, now=clock.now())
    checked = get(database, file)
    assert (checked.processing_status, checked.line_count) == (status, 3)
    assert checked.report == {**REPORT, "valid": valid}
    assert claim(database, clock) is None


def test_check_when_given_back_again_and_again_keeps_its_attempts(database, clock, project_id):
    file = make_file(database, clock, project_id)
    for _ in range(service.CHECK_ATTEMPTS_MAX + 1):  # so many restarts in good order
        assert claim(database, clock).file_id == file.id
        with database.transaction() as tx:
            service.renew_check(tx, file.id, now=clock.now(), claim_s=0.0)
    assert get(database, file).processing_status == "QUEUED"


def test_check_when_it_fails_is_queued_again_until_its_attempts_are_used_up(database, clock, project_id):
    file = make_file(database, clock, project_id)
    for attempt in range(service.CHECK_ATTEMPTS_MAX):
        assert get(database, file).processing_status == "QUEUED", attempt
        claim(database, clock)
        with database.transaction() as tx:
            service.fail_check(tx, file.id, "the disk is full", now=clock.now())
    assert (get(database, file).processing_status, get(database, file).failure) == ("FAILED", "the disk is full")


def test_check_when_it_is_done_a_late_failure_changes_nothing(database, clock, project_id):
    file = make_file(database, clock, project_id)
    claim(database, clock)
    with database.transaction() as tx:
        service.record_check(tx, file.id, REPORT, now=clock.now())
    with database.transaction() as tx:
        service.fail_check(tx, file.id, "it took too long", now=clock.now(), is_final=True)
    assert get(database, file).processing_status == "COMPLETED"


def test_claim_when_another_followed_it_or_the_check_is_over_is_void(database, clock, project_id):
    file = make_file(database, clock, project_id)
    first = claim(database, clock, claim_s=60)
    clock.advance(61)
    second = claim(database, clock)
    with database.transaction() as tx:
        assert not service.has_check_claim(tx, file.id, first.claim)
        assert service.has_check_claim(tx, file.id, second.claim)
        service.record_check(tx, file.id, REPORT, now=clock.now())
        assert not service.has_check_claim(tx, file.id, second.claim)


def test_check_that_failed_by_our_fault_is_queued_again_by_sending_the_file_anew(database, clock, project_id):
    file = make_file(database, clock, project_id)
    claim(database, clock)
    with database.transaction() as tx:
        service.fail_check(tx, file.id, "the check ran out of memory", now=clock.now(), is_final=True)
    assert get(database, file).failure == "the check ran out of memory"
    with database.transaction() as tx:
        again = service.find_same_content(tx, project_id, sha256=SHA256, purpose="fine-tune")
    assert (again.id, again.processing_status, again.failure) == (file.id, "QUEUED", None)
    assert claim(database, clock).file_id == file.id


def test_check_result_of_a_deleted_file_is_ignored(database, clock, project_id):
    file = make_file(database, clock, project_id)
    claim(database, clock)
    with database.transaction() as tx:
        service.delete_file(tx, project_id, file.id, now=clock.now())
    with database.transaction() as tx:
        service.record_check(tx, file.id, REPORT, now=clock.now())
        service.fail_check(tx, file.id, "late", now=clock.now())
        service.renew_check(tx, file.id, now=clock.now(), claim_s=60)
    with pytest.raises(NotFound):
        get(database, file)


def test_content_that_four_announced_when_all_complete_at_once_is_one_file(database, clock, project_id):
    uploads = [begin(database, clock, project_id, sha256=SHA256) for _ in range(4)]
    made, refused = [], []
    together = threading.Barrier(4)

    def finish(upload) -> None:
        together.wait(timeout=10)
        try:
            made.append(complete(database, clock, upload).id)
        except service.FileExists as error:
            refused.append(error.file_id)

    threads = [threading.Thread(target=finish, args=(upload,)) for upload in uploads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert refused == made * 3
