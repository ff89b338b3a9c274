"""What callers say about a file: its name, purpose, type and checksum, each judged on its own. Pure.

Parameter names in errors are those of the wire (``file_name``, ``checksum``), as callers wrote them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from luthier.errors import InvalidRequest, Unprocessable

FINE_TUNE = "fine-tune"
PURPOSES = (FINE_TUNE, "eval", "eval-output", "batch-api")
FILE_TYPES = ("jsonl", "parquet", "csv")
TRAINABLE_TYPES = ("jsonl",)
FILENAME_MAX_LENGTH = 255

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEPARATORS = re.compile(r"[/\\]")


@dataclass(frozen=True)
class FileRequest:
    """What a file is to be. ``sha256`` is what the caller announced."""

    filename: str
    purpose: str
    file_type: str
    sha256: str | None


def parse_request(fields: Mapping[str, str]) -> FileRequest:
    """Judge the fields of an upload request. Raises for the first one that is missing or wrong."""
    filename = clean_filename(fields.get("file_name"))
    purpose = require_purpose(fields.get("purpose"))
    return FileRequest(
        filename=filename,
        purpose=purpose,
        file_type=require_file_type(fields.get("file_type"), filename=filename, purpose=purpose),
        sha256=require_checksum(fields.get("checksum")),
    )


def require_purpose(purpose: str | None) -> str:
    """Return the purpose. Raises when it is missing or unknown."""
    if not purpose:
        raise Unprocessable(
            "missing_purpose",
            "purpose is missing",
            hint=f"send purpose: one of {', '.join(PURPOSES)}",
            param="purpose",
        )
    if purpose not in PURPOSES:
        raise InvalidRequest(
            "invalid_purpose",
            f"unknown purpose: {purpose[:80]!r}",
            hint=f"use one of {', '.join(PURPOSES)}",
            param="purpose",
        )
    return purpose


def require_file_type(file_type: str | None, *, filename: str, purpose: str) -> str:
    """Return the file's type: the one named, else by the name's ending. Raises when it cannot be used."""
    named = file_type or PurePosixPath(filename).suffix.lower().removeprefix(".")
    if named not in FILE_TYPES:
        raise InvalidRequest(
            "invalid_file_type",
            f"unknown type of file: {(file_type or filename)[:80]!r}",
            hint=f"use one of {', '.join(FILE_TYPES)}",
            param="file_type",
        )
    if purpose == FINE_TUNE and named not in TRAINABLE_TYPES:
        raise InvalidRequest(
            "unsupported_file_type",
            f"this server does not train on files of type: {named}",
            hint="convert it to JSONL: one JSON object a line, UTF-8",
            param="file_type",
        )
    return named


def require_checksum(checksum: str | None) -> str | None:
    """Return the announced sha256 in lower case, None when there is none. Raises for anything else."""
    if not checksum:
        return None
    lowered = checksum.lower()
    if not _SHA256.fullmatch(lowered):
        raise InvalidRequest(
            "invalid_checksum",
            f"the checksum is not a sha256 in hex: {checksum[:80]!r}",
            hint="send the 64 hex digits that sha256sum prints, or leave it out",
            param="checksum",
        )
    return lowered


def clean_filename(filename: str | None) -> str:
    """Return a name that is safe to show and to offer for saving: no folders, no control or invisible characters.

    It names nothing on the server. Raises when nothing is left.
    """
    if not filename:
        raise Unprocessable(
            "missing_file_name",
            "file_name is missing",
            hint="send file_name: the file's name, e.g. train.jsonl",
            param="file_name",
        )
    last = _SEPARATORS.split(filename)[-1]
    visible = "".join(char for char in last if unicodedata.category(char)[0] != "C").strip()
    if visible.strip(".") == "":
        raise InvalidRequest(
            "invalid_file_name",
            f"the file's name has no visible character: {filename[:80]!r}",
            hint="send a name such as train.jsonl",
            param="file_name",
        )
    return visible[-FILENAME_MAX_LENGTH:]  # the end is kept: it has the type
