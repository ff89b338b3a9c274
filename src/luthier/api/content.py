"""Stored bytes as an HTTP answer: whole, or the one range that was asked for, so that a download can be resumed."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote

from fastapi import Header
from fastapi.responses import StreamingResponse

from luthier.errors import NotFound, ServiceError
from luthier.storage import ObjectMissing, ObjectStore

RangeParam = Annotated[str | None, Header(alias="Range")]
IfRangeParam = Annotated[str | None, Header(alias="If-Range")]

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class RangeNotSatisfiable(ServiceError):
    """The range begins after the last byte."""

    status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def serve_object(
    store: ObjectStore,
    key: str,
    *,
    size_bytes: int,
    sha256: str,
    filename: str,
    media_type: str,
    range_header: str | None,
    if_range: str | None,
) -> StreamingResponse:
    """Return the object's bytes: 206 with ``Content-Range`` for one range, 200 for everything else.

    A range for another version of the bytes (``If-Range``) gets the whole, as RFC 9110 section 13.1.5
    says. Raises RangeNotSatisfiable, and NotFound when the bytes are gone.
    """
    etag = f'"{sha256}"'
    span = None if if_range not in {None, etag} else _parse_range(range_header, size_bytes)
    start, end = span or (0, size_bytes)
    try:
        blocks = store.open_reader(key, start, end)
    except ObjectMissing:
        raise NotFound(
            "content_missing",
            f"the bytes of {filename} are no longer kept",
            hint="make them again: run the job, or upload the file, once more",
        ) from None
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - start),
        "Content-Disposition": _describe_filename(filename),
        "ETag": etag,
    }
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    status = HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT
    return StreamingResponse(blocks, status_code=status, headers=headers, media_type=media_type)


def _parse_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """Return start and end (excluded) of a single range; None for none, several, or what is no range at all."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last so many bytes
        start, end = max(0, size_bytes - int(match[2])), size_bytes
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size_bytes) if match[2] else size_bytes
        if match[2] and int(match[2]) < start:
            return None
    if start >= end:
        raise RangeNotSatisfiable(
            "range_not_satisfiable",
            f"the content has {size_bytes} bytes, and the range begins after them: {header}",
            hint=f"ask for a part of bytes 0-{size_bytes - 1}, or leave Range out",
            param="Range",
        )
    return start, end


def _describe_filename(filename: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
