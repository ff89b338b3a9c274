"""Files in the Together dialect: leave to upload, list, look, download, delete. The bytes come in ``uploads``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from luthier.api import errors
from luthier.api.auth import PrincipalParam
from luthier.api.content import IfRangeParam, RangeParam, serve_object
from luthier.api.context import Services, ServicesParam
from luthier.billing import funds
from luthier.datasets import report as reports
from luthier.db import Session
from luthier.errors import Conflict, Unavailable
from luthier.files import names, signing
from luthier.files import service as files
from luthier.files.names import FileRequest
from luthier.files.service import FileView, UploadView
from luthier.jobs import service as jobs

router = APIRouter(prefix="/v1/files", tags=["files"])

MEDIA_TYPES = {"jsonl": "application/jsonl", "csv": "text/csv", "parquet": "application/vnd.apache.parquet"}


class FileObject(BaseModel):
    """A file, with the names that the clients read."""

    id: str
    object: Literal["file"] = "file"
    created_at: int = Field(description="Seconds since 1970")
    filename: str
    bytes: int
    purpose: str
    FileType: str
    Processed: bool = Field(description="The check came to a result")
    LineCount: int | None
    processing_status: str = Field(description="PENDING, QUEUED, RUNNING, COMPLETED, INVALID_FORMAT or FAILED")
    validation_report: dict[str, Any] | None


class FileList(BaseModel):
    """All files of the project, oldest first."""

    object: Literal["list"] = "list"
    data: list[FileObject]


class DeletedFile(BaseModel):
    """A file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def render_file(file: FileView) -> FileObject:
    """Return a file as the clients read it."""
    return FileObject(
        id=file.id,
        created_at=int(file.created_at.timestamp()),
        filename=file.filename,
        bytes=file.size_bytes,
        purpose=file.purpose,
        FileType=file.file_type,
        Processed=file.processing_status in {"COMPLETED", "INVALID_FORMAT"},
        LineCount=file.line_count,
        processing_status=file.processing_status,
        validation_report=_render_report(file),
    )


def _render_report(file: FileView) -> dict[str, Any] | None:
    if file.failure is not None:
        return {"valid": False, "error": file.failure, "file_id": file.id}
    if file.report is None:
        return None
    return reports.to_api(msgspec.convert(file.report, reports.Report), file.id)


async def read_fields(request: Request) -> dict[str, str]:
    """Return the text fields of a form and of the query; one client sends both, with the same values."""
    async with request.form(max_files=0) as form:
        return {**request.query_params, **{name: value for name, value in form.items() if isinstance(value, str)}}


@router.post("", status_code=302, response_class=RedirectResponse)
def request_upload(
    request: Request,
    principal: PrincipalParam,
    services: ServicesParam,
    fields: Annotated[dict[str, str], Depends(read_fields)],
) -> Response:
    """Give out an upload URL: signed, expiring, good once; 402 below the balance that everything here needs.

    Form fields: `file_name`, `purpose`, `file_type` and, optional, `checksum` (sha256 in hex). When the project has a
    file with that checksum, the answer is 409 with its `file_id`.
    """
    wanted = names.parse_request(fields)
    require_space(services, 0)
    with services.database.transaction() as tx:
        funds.require_minimum(tx, principal.organization_id, policy=services.policy)
        existing = _find_announced(tx, principal.project_id, wanted)
        if existing is None:
            upload = files.create_upload(
                tx,
                upload_id=files.make_upload_id(),
                project_id=principal.project_id,
                request=wanted,
                ttl_s=services.settings.upload_url_ttl_s,
                now=services.clock.now(),
            )
    if existing is not None:
        raise files.FileExists(existing.id)
    return Response(
        status_code=302,
        headers={"Location": _make_upload_url(request, services, upload), "X-Together-File-Id": upload.id},
    )


def _find_announced(tx: Session, project_id: str, wanted: FileRequest) -> FileView | None:
    if wanted.sha256 is None:
        return None
    return files.find_same_content(tx, project_id, sha256=wanted.sha256, purpose=wanted.purpose)


def _make_upload_url(request: Request, services: Services, upload: UploadView) -> str:
    base_url = (services.settings.public_url or str(request.base_url)).rstrip("/")
    token = signing.sign_upload(upload.id, upload.expires_at, services.master_key)
    return f"{base_url}/v1/uploads/{upload.id}?token={token}"


def require_space(services: Services, size_bytes: int) -> None:
    """Raise Unavailable when so many more bytes would leave less free than the reserve."""
    free = services.store.find_free_bytes()
    if free is not None and free - size_bytes < services.settings.disk_reserve_bytes:
        raise Unavailable(
            "disk_full",
            f"the server's disk has too little space: {free} bytes free, "
            f"{size_bytes} wanted, {services.settings.disk_reserve_bytes} kept in reserve",
            hint="delete files that are no longer needed, or ask the operator for a larger disk",
        )


def handle_file_exists(request: Request, error: Exception) -> JSONResponse:
    """Tell which file it is, and that trying again is no use: the clients then take that file."""
    assert isinstance(error, files.FileExists)
    response = errors.render(error, request.state.request_id, file_id=error.file_id)
    response.headers["x-should-retry"] = "false"
    return response


@router.post("/{file_id}/preprocess")
def preprocess(file_id: str, principal: PrincipalParam, services: ServicesParam) -> FileObject:
    """Return the file: the check of a complete file for fine-tuning is queued without being asked for."""
    return get_file(file_id, principal, services)


@router.get("")
def list_files(principal: PrincipalParam, services: ServicesParam) -> FileList:
    """List the project's files."""
    with services.database.read() as tx:
        rows = files.list_files(tx, principal.project_id)
    return FileList(data=[render_file(row) for row in rows])


@router.get("/{file_id}")
def get_file(file_id: str, principal: PrincipalParam, services: ServicesParam) -> FileObject:
    """Return a file and, once it is there, the result of its check."""
    with services.database.read() as tx:
        return render_file(files.get_file(tx, principal.project_id, file_id))


@router.delete("/{file_id}")
def delete_file(file_id: str, principal: PrincipalParam, services: ServicesParam) -> DeletedFile:
    """Delete a file, unless a job that has not ended uses it."""
    with services.database.transaction() as tx:
        files.require_deletable(tx, principal.project_id, file_id)
        job_id = jobs.find_live_job_using_file(tx, file_id)
        if job_id is not None:
            raise Conflict(
                "file_in_use",
                f"a job that has not ended uses the file: {job_id}",
                hint=f"wait for the job to end, or cancel it: luthier ft cancel {job_id}",
            )
        files.delete_file(tx, principal.project_id, file_id, now=services.clock.now())
    return DeletedFile(id=file_id)


@router.get("/{file_id}/content", response_class=StreamingResponse)
def get_content(
    file_id: str,
    principal: PrincipalParam,
    services: ServicesParam,
    range_header: RangeParam = None,
    if_range: IfRangeParam = None,
) -> StreamingResponse:
    """Download a file; `Range` is honoured."""
    with services.database.read() as tx:
        file = files.get_file(tx, principal.project_id, file_id)
    return serve_object(
        services.store,
        file.object_key,
        size_bytes=file.size_bytes,
        sha256=file.sha256,
        filename=file.filename,
        media_type=MEDIA_TYPES[file.file_type],
        range_header=range_header,
        if_range=if_range,
    )
