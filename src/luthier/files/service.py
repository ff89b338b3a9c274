"""Files: leave to upload, the rows of what arrived, and their validation as a queue.

Bytes first, row second: ``complete_upload`` is called once the object is in the store, so a crash leaves
an object without a row, which ``files.sweep`` removes, and never a row without bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from luthier import ids
from luthier.db import Session
from luthier.errors import Conflict, Forbidden, NotFound, ServiceError
from luthier.files import queries, signing
from luthier.files.names import FINE_TUNE, FileRequest
from luthier.files.tables import File, Upload

OBJECT_PREFIX = "files/"
CHECK_ATTEMPTS_MAX = 3  # a check that dies three times would die a fourth time


@dataclass(frozen=True)
class FileView:
    """A file. ``report`` is the check's result; ``failure`` says why there is none, when that was our fault."""

    id: str
    project_id: str
    filename: str
    purpose: str
    file_type: str
    size_bytes: int
    sha256: str
    object_key: str
    created_at: datetime
    processing_status: str
    line_count: int | None
    report: dict[str, Any] | None
    failure: str | None


@dataclass(frozen=True)
class UploadView:
    """Leave to send one file's bytes. ``id`` becomes the file's id; ``sha256`` is what was announced."""

    id: str
    project_id: str
    sha256: str | None
    expires_at: datetime


@dataclass(frozen=True)
class CheckOrder:
    """A file to check: whose, and where its bytes are. ``claim`` is the number under which it was taken."""

    file_id: str
    claim: int
    object_key: str
    filename: str


class FileExists(Conflict):
    """The project has a file with these bytes already."""

    def __init__(self, file_id: str) -> None:
        super().__init__(
            "file_exists",
            f"the project has a file with this content already: {file_id}",
            hint=f"use that file; to upload it anew, delete it first: DELETE /v1/files/{file_id}",
        )
        self.file_id = file_id


class UploadGone(ServiceError):
    """The upload's URL is no longer good."""

    status = 410


def make_upload_id() -> str:
    """Return the id of a new upload, which becomes the file's."""
    return ids.new_id("file")


def make_object_key(upload_id: str) -> str:
    """Return a new key for an upload's bytes: each attempt has its own, so that two cannot meet."""
    return f"{OBJECT_PREFIX}{upload_id}/{secrets.token_hex(8)}"


def create_upload(
    tx: Session, *, upload_id: str, project_id: str, request: FileRequest, ttl_s: int, now: datetime
) -> UploadView:
    """Give leave to send a file's bytes, for ``ttl_s``."""
    row = Upload(
        id=upload_id,
        project_id=project_id,
        filename=request.filename,
        purpose=request.purpose,
        file_type=request.file_type,
        sha256=request.sha256,
        created_at=now,
        expires_at=now + timedelta(seconds=ttl_s),
    )
    tx.add(row)
    return _view_upload(row)


def open_upload(tx: Session, upload_id: str, token: str, *, master_key: bytes, now: datetime) -> UploadView:
    """Return the upload that a signed URL stands for. Raises Forbidden, UploadGone (expired), Conflict (used)."""
    row = queries.find_upload(tx, upload_id)
    if row is None or not signing.is_upload_token(token, row.id, row.expires_at, master_key):
        raise Forbidden(
            "invalid_upload_url",
            "this is not an upload URL that the server gave out",
            hint="use the Location header of POST /v1/files as it is; old URLs are forgotten",
        )
    if row.used_at is not None:
        raise _used(row)
    if row.expires_at <= now:
        raise UploadGone(
            "upload_expired",
            f"the upload URL expired at {row.expires_at:%Y-%m-%d %H:%M:%S} UTC",
            hint="ask for a new one with POST /v1/files",
        )
    return _view_upload(row)


def complete_upload(
    tx: Session, upload_id: str, *, object_key: str, size_bytes: int, sha256: str, now: datetime
) -> FileView:
    """Make the file of bytes that are in the store now; its check is queued when it is for fine-tuning.

    Raises Conflict when another attempt came first, FileExists when the content was announced and another upload of
    it came first, UploadGone when the upload was forgotten meanwhile; the caller removes the object then. Content
    that was not announced may be there twice: who did not ask for it beforehand takes a conflict for a failure.
    """
    upload = _lock_upload(tx, upload_id)
    if upload is None:
        raise UploadGone(
            "upload_expired", "the upload took too long and was given up", hint="ask for a new URL with POST /v1/files"
        )
    if upload.used_at is not None:
        raise _used(upload)
    assert upload.sha256 in {None, sha256}, f"{upload_id}: announced {upload.sha256}, got {sha256}"
    if upload.sha256 is not None:
        existing = queries.find_same_content(tx, upload.project_id, sha256, upload.purpose)
        if existing is not None:
            raise FileExists(existing.id)
    upload.used_at = now
    row = File(
        id=upload.id,
        project_id=upload.project_id,
        filename=upload.filename,
        purpose=upload.purpose,
        file_type=upload.file_type,
        size_bytes=size_bytes,
        sha256=sha256,
        object_key=object_key,
        created_at=now,
        processing_status="QUEUED" if upload.purpose == FINE_TUNE else "PENDING",
        attempts=0,
        claim_number=0,
    )
    tx.add(row)
    tx.flush()
    return _view(row)


def _lock_upload(tx: Session, upload_id: str) -> Upload | None:
    """Return an upload, locked, and with it all that announced the same content in its project."""
    upload = queries.find_upload(tx, upload_id)
    if upload is not None and upload.sha256 is not None:
        queries.lock_uploads_of_content(tx, upload.project_id, upload.sha256, upload.purpose)
    return queries.find_upload_for_update(tx, upload_id)


def _used(upload: Upload) -> Conflict:
    return Conflict(
        "upload_used",
        f"the upload URL was used already, for the file: {upload.id}",
        hint=f"the file is there: GET /v1/files/{upload.id}; for another file ask for a new URL with POST /v1/files",
    )


def find_same_content(tx: Session, project_id: str, *, sha256: str, purpose: str) -> FileView | None:
    """Return the project's file that has these bytes and this purpose already.

    When its check failed by our fault it is queued again: sending the file anew is how its owner says so.
    """
    row = queries.find_same_content(tx, project_id, sha256, purpose)
    if row is None:
        return None
    if row.processing_status == "FAILED":
        _queue_check(row)
    return _view(row)


def get_file(tx: Session, project_id: str, file_id: str) -> FileView:
    """Return a project's file. Raises NotFound for an unknown one, another project's, or one that has no bytes yet."""
    return _view(_require(tx, project_id, file_id, queries.find_file(tx, project_id, file_id)))


def keep_file(tx: Session, project_id: str, file_id: str) -> FileView:
    """Do what ``get_file`` does, for whoever begins to use the file: nobody deletes it until ``tx`` ends."""
    return _view(_require(tx, project_id, file_id, queries.find_file_to_keep(tx, project_id, file_id)))


def require_deletable(tx: Session, project_id: str, file_id: str) -> None:
    """Lock a file that is to be deleted: nobody begins to use it until ``tx`` ends. Raises NotFound.

    First statement of a deletion: who uses the file already is seen after it.
    """
    _require(tx, project_id, file_id, queries.find_file_to_delete(tx, project_id, file_id))


def find_file(tx: Session, project_id: str, file_id: str) -> FileView | None:
    """Return a project's file, None when there is none."""
    row = queries.find_file(tx, project_id, file_id)
    return None if row is None else _view(row)


def list_files(tx: Session, project_id: str) -> list[FileView]:
    """Return a project's files, oldest first."""
    return [_view(row) for row in queries.list_files(tx, project_id)]


def list_contents_in_use(tx: Session, sha256s: Collection[str], *, deleted_after: datetime) -> set[str]:
    """Return which contents a file of any project has that is there, or was deleted only after a moment."""
    return queries.list_contents_in_use(tx, sha256s, deleted_after)


def delete_file(tx: Session, project_id: str, file_id: str, *, now: datetime) -> None:
    """Delete a file; its bytes go with a later sweep.

    The caller has made sure that no live job uses it, after ``require_deletable``.
    """
    _require(tx, project_id, file_id, queries.find_file_to_delete(tx, project_id, file_id)).deleted_at = now


def _require(tx: Session, project_id: str, file_id: str, row: File | None) -> File:
    if row is not None:
        return row
    upload = queries.find_upload(tx, file_id)
    if upload is not None and upload.project_id == project_id and upload.used_at is None:
        raise NotFound(
            "file_incomplete",
            f"the file's bytes have not arrived: {file_id}",
            hint="send them with PUT to the upload URL that POST /v1/files gave",
        )
    raise NotFound(
        "file_not_found", f"there is no file: {file_id}", hint="luthier files list shows the project's files"
    )


def _queue_check(row: File) -> None:
    row.processing_status = "QUEUED"
    row.attempts = 0
    row.claimed_until = None
    row.report = None


def claim_check(tx: Session, *, now: datetime, claim_s: float) -> CheckOrder | None:
    """Take the oldest file that waits for its check, for ``claim_s``; None when none does.

    A file whose claims ran out ``CHECK_ATTEMPTS_MAX`` times is given up on the way.
    """
    while (row := queries.find_file_to_check(tx, now)) is not None:
        if row.attempts < CHECK_ATTEMPTS_MAX:
            row.attempts += 1
            row.processing_status = "RUNNING"
            row.claim_number += 1
            row.claimed_until = now + timedelta(seconds=claim_s)
            return CheckOrder(file_id=row.id, claim=row.claim_number, object_key=row.object_key, filename=row.filename)
        _fail(
            row, f"the check was started {row.attempts} times and never came to an end; upload the file again to retry"
        )
        tx.flush()  # the next look must not find it again
    return None


def has_check_claim(tx: Session, file_id: str, claim: int) -> bool:
    """Lock the file and tell whether its check is still under way under this claim, and not another's by now."""
    row = queries.find_file_for_update(tx, file_id)
    return row is not None and row.processing_status == "RUNNING" and row.claim_number == claim


def renew_check(tx: Session, file_id: str, *, now: datetime, claim_s: float) -> None:
    """Say that a claimed check is still under way. Zero gives the claim back, and the attempt with it."""
    row = queries.find_file_for_update(tx, file_id)
    if row is None or row.processing_status != "RUNNING":
        return
    row.claimed_until = now + timedelta(seconds=claim_s)
    if not claim_s:
        row.processing_status, row.attempts = "QUEUED", row.attempts - 1


def record_check(tx: Session, file_id: str, report: Mapping[str, Any], *, now: datetime) -> None:
    """Keep a check's result; nothing happens when the file was deleted meanwhile."""
    del now
    row = queries.find_file_for_update(tx, file_id)
    if row is None:
        return
    row.processing_status = "COMPLETED" if report["valid"] else "INVALID_FORMAT"
    row.line_count = report["nlines"]
    row.report = dict(report)
    row.claimed_until = None


def fail_check(tx: Session, file_id: str, message: str, *, now: datetime, is_final: bool = False) -> None:
    """Say that a check could not be done, by our fault or for its limits; ``message`` says which and what to do.

    It is queued again until its attempts are used up, unless this is final. One that is not under way any more
    stays as it is.
    """
    del now
    row = queries.find_file_for_update(tx, file_id)
    if row is None or row.processing_status != "RUNNING":
        return
    if is_final or row.attempts >= CHECK_ATTEMPTS_MAX:
        _fail(row, message)
    else:
        row.processing_status, row.claimed_until = "QUEUED", None


def _fail(row: File, message: str) -> None:
    row.processing_status = "FAILED"
    row.claimed_until = None
    row.report = {"failure": message}


def _view(row: File) -> FileView:
    has_failed = row.processing_status == "FAILED"
    return FileView(
        id=row.id,
        project_id=row.project_id,
        filename=row.filename,
        purpose=row.purpose,
        file_type=row.file_type,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        object_key=row.object_key,
        created_at=row.created_at,
        processing_status=row.processing_status,
        line_count=row.line_count,
        report=None if has_failed else row.report,
        failure=row.report["failure"] if has_failed and row.report else None,
    )


def _view_upload(row: Upload) -> UploadView:
    return UploadView(id=row.id, project_id=row.project_id, sha256=row.sha256, expires_at=row.expires_at)
