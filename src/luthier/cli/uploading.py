"""Sending a file: announced with its sha256, then its bytes to the signed URL that the server answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from luthier.cli.connection import Connection
from luthier.cli.output import as_dict

BLOCK_BYTES = 1024 * 1024
WRITE_TIMEOUT_S = 120.0
TRIES = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Uploaded:
    """The file as the server has it; ``is_new`` is False when it had the same content already."""

    file: dict[str, Any]
    is_new: bool


def upload(connection: Connection, path: Path, *, purpose: str, on_progress: Progress) -> Uploaded:
    """Send a file and return it as the server sees it; the same content again is not sent again.

    An upload whose connection is lost begins anew, up to ``TRIES`` times. Raises Failure for a refusal.
    """
    checksum = _hash_file(path)
    form = {"purpose": purpose, "file_name": path.name, "file_type": _find_type(path), "checksum": checksum}
    for attempt in range(1, TRIES + 1):
        announced = connection.send("POST", "/v1/files", data=form)
        if known := _find_known(announced):
            return Uploaded(connection.get(f"/v1/files/{known}"), is_new=False)
        connection.require_success(announced)
        location, file_id = announced.headers.get("Location"), announced.headers.get("X-Together-File-Id")
        if not location or not file_id:
            raise connection.unexpected(announced, "no place to upload to")
        try:
            sent = _put(connection, location, path, on_progress)
        except httpx.HTTPError as error:
            if attempt == TRIES:
                raise connection.unreachable(error) from error
            continue
        if known := _find_known(sent):
            return Uploaded(connection.get(f"/v1/files/{known}"), is_new=False)
        connection.require_success(sent)
        return Uploaded(connection.post(f"/v1/files/{file_id}/preprocess"), is_new=True)
    raise AssertionError(f"no answer after {TRIES} tries")


def _put(connection: Connection, location: str, path: Path, on_progress: Progress) -> httpx.Response:
    """PUT the bytes. The URL carries its own leave, so our key is not sent along."""
    size_bytes = path.stat().st_size
    return connection.http.put(
        location,
        content=_read_blocks(path, size_bytes, on_progress),
        headers={"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"},
        timeout=httpx.Timeout(WRITE_TIMEOUT_S, connect=5.0),
    )


def _read_blocks(path: Path, size_bytes: int, on_progress: Progress) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block
            done += len(block)
            on_progress(done, size_bytes)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find_type(path: Path) -> str:
    return "parquet" if path.suffix.lower() == ".parquet" else "jsonl"


def _find_known(response: httpx.Response) -> str | None:
    """Return the id of the file with the same content, when that is why the server declined."""
    if response.status_code != httpx.codes.CONFLICT:
        return None
    try:
        file_id = as_dict(response.json()).get("file_id")
    except ValueError:
        return None
    return file_id if isinstance(file_id, str) else None
