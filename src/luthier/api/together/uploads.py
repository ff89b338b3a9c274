"""The bytes of files on their way in: to a signed URL, or as a multipart form. Streamed, so ``async``.

Bytes first, row second; an object whose row could not be made is removed at once, or by the sweep.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive

from luthier.accounts.service import Principal
from luthier.api.auth import PrincipalParam
from luthier.api.context import Services, ServicesParam
from luthier.api.together.files import FileObject, render_file, require_space
from luthier.api.together.forms import FileForm
from luthier.billing import funds
from luthier.errors import InvalidRequest, ServiceError, TooLarge
from luthier.files import names
from luthier.files import service as files
from luthier.files.intake import open_intake
from luthier.files.names import FileRequest
from luthier.files.service import UploadView

router = APIRouter(tags=["files"])


class LengthRequired(ServiceError):
    """The request does not say how long its body is."""

    status = 411


class UploadStalled(ServiceError):
    """The sender fell silent."""

    status = 408


@router.put("/v1/uploads/{upload_id}")
async def put_upload(
    request: Request, upload_id: str, services: ServicesParam, token: Annotated[str, Query()] = ""
) -> FileObject:
    """Take a file's raw bytes at a signed URL. Nothing is kept unless all of them came and match the checksum."""
    upload = await run_in_threadpool(_open_upload, services, upload_id, token)
    _require_length(request, services)
    key = files.make_object_key(upload_id)
    async with open_intake(services.store, key) as intake:
        async for data in _stream(request.receive, services.settings.upload_idle_timeout_s):
            await intake.feed(data)
        sha256 = await intake.finish()
        _require_content(intake.size_bytes, sha256, upload.sha256)
        await intake.commit()
    return await run_in_threadpool(_complete, services, upload_id, key, intake.size_bytes, sha256)


def _open_upload(services: Services, upload_id: str, token: str) -> UploadView:
    with services.database.read() as tx:
        return files.open_upload(tx, upload_id, token, master_key=services.master_key, now=services.clock.now())


def _require_length(request: Request, services: Services) -> None:
    """Judge the announced length before a byte is read; the server's parser holds the sender to it."""
    announced = request.headers.get("content-length")
    if announced is None:
        raise LengthRequired(
            "length_required",
            "the upload has no Content-Length",
            hint="send the file's size in Content-Length, not a chunked body; clients leave it out for an empty file",
        )
    size_bytes = int(announced)
    if size_bytes > services.settings.upload_max_bytes:
        raise _too_large(services)
    require_space(services, size_bytes)


def _complete(services: Services, upload_id: str, key: str, size_bytes: int, sha256: str) -> FileObject:
    try:
        with services.database.transaction() as tx:
            file = files.complete_upload(
                tx, upload_id, object_key=key, size_bytes=size_bytes, sha256=sha256, now=services.clock.now()
            )
    except ServiceError:
        services.store.delete(key)
        raise
    return render_file(file)


@router.post("/v1/files/upload")
async def upload_form(request: Request, principal: PrincipalParam, services: ServicesParam) -> FileObject:
    """Take a file in one request: a multipart form with `file`, `file_name`, `purpose` and `file_type`."""
    form = FileForm(request.headers.get("content-type", ""))
    await run_in_threadpool(_require_minimum, services, principal)
    is_announced = "content-length" in request.headers  # else the space is looked at again as the bytes come
    require_space(services, int(request.headers.get("content-length", "0")))
    upload_id = files.make_upload_id()
    key = files.make_object_key(upload_id)
    async with open_intake(services.store, key) as intake:
        async for data in _stream(request.receive, services.settings.upload_idle_timeout_s):
            for piece in form.feed(data):
                await intake.feed(piece)
            if not is_announced:
                require_space(services, intake.waiting_bytes)
            if intake.size_bytes > services.settings.upload_max_bytes:
                raise _too_large(services)
        form.require_end()
        wanted = names.parse_request(form.fields)
        sha256 = await intake.finish()
        _require_content(intake.size_bytes, sha256, wanted.sha256)
        wanted = replace(wanted, sha256=sha256)
        await run_in_threadpool(_begin, services, principal, upload_id, wanted, sha256)
        await intake.commit()
    return await run_in_threadpool(_complete, services, upload_id, key, intake.size_bytes, sha256)


def _require_minimum(services: Services, principal: Principal) -> None:
    with services.database.read() as tx:
        funds.require_minimum(tx, principal.organization_id, policy=services.policy)


def _begin(services: Services, principal: Principal, upload_id: str, wanted: FileRequest, sha256: str) -> None:
    """Make the upload's row, so that the sweep knows whose the object is. Raises FileExists for the same content."""
    with services.database.transaction() as tx:
        existing = files.find_same_content(tx, principal.project_id, sha256=sha256, purpose=wanted.purpose)
        if existing is None:
            files.create_upload(
                tx,
                upload_id=upload_id,
                project_id=principal.project_id,
                request=wanted,
                ttl_s=services.settings.upload_url_ttl_s,
                now=services.clock.now(),
            )
    if existing is not None:
        raise files.FileExists(existing.id)


async def _stream(receive: Receive, idle_timeout_s: float) -> AsyncIterator[bytes]:
    """Yield the body as it comes. Raises UploadStalled when nothing comes, InvalidRequest when the sender leaves."""
    more = True
    while more:
        try:
            async with asyncio.timeout(idle_timeout_s):
                message = await receive()
        except TimeoutError:
            raise UploadStalled(
                "upload_stalled",
                f"nothing came for {idle_timeout_s:g} s; nothing of the upload was kept",
                hint="check the connection, then send the file again; the URL is still good until it expires",
            ) from None
        if message["type"] == "http.disconnect":
            raise InvalidRequest(
                "upload_cut_off",
                "the connection ended before the whole file came; nothing of it was kept",
                hint="send the file again; the URL is still good until it expires",
            )
        more = message.get("more_body", False)
        if body := message.get("body", b""):
            yield body


def _require_content(size_bytes: int, sha256: str, announced_sha256: str | None) -> None:
    if size_bytes == 0:
        raise InvalidRequest("empty_file", "the file is empty", hint="a file has at least one row", param="file")
    if announced_sha256 not in {None, sha256}:
        raise InvalidRequest(
            "checksum_mismatch",
            f"the bytes that came have sha256 {sha256}, announced was {announced_sha256}; nothing was kept",
            hint="the file changed or was damaged on the way: send it again",
            param="checksum",
        )


def _too_large(services: Services) -> TooLarge:
    return TooLarge(
        "file_too_large",
        f"the file is larger than {services.settings.upload_max_bytes} bytes",
        hint="split the file; the operator can raise LUTHIER_UPLOAD_MAX_BYTES",
        param="file",
    )
