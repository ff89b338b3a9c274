"""Downloads that survive lost connections: resumed by Range, verified, and visible only when complete."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from luthier.cli.connection import Connection
from luthier.cli.exits import Exit, Failure

TRIES = 8  # in a row that bring nothing
PAUSE_FIRST_S, PAUSE_MAX_S = 0.5, 10.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Content:
    """What the server has at a path: ``tag`` changes when the content does; ``sha256`` when the server names it."""

    size_bytes: int
    tag: str
    sha256: str | None
    content_type: str
    filename: str | None


def choose_target(destination: Path | None, name: str) -> Path:
    """Return where to write a download called ``name``. Raises Failure when that exists already.

    ``name`` comes from the server: only its last part is used, and never as a hidden file.
    """
    safe = Path(name.replace("\\", "/")).name.lstrip(".") or "download"
    target = destination or Path(safe)
    if target.is_dir():
        target /= safe
    if target.exists():
        raise Failure(
            "target_exists",
            f"{target} exists already",
            exit_code=Exit.USAGE,
            hint="name another place with -o, or remove it first",
        )
    return target


def copy_to_stdout(connection: Connection, path: str) -> None:
    """Write the content to stdout as it comes; a lost connection ends it with a Failure."""
    try:
        with connection.stream(path) as response:
            for block in response.iter_bytes():
                sys.stdout.buffer.write(block)
    except httpx.HTTPError as error:
        raise connection.unreachable(error) from error


def probe(connection: Connection, path: str, params: Mapping[str, Any] | None = None) -> Content:
    """Ask what is at ``path`` by asking for its first two bytes."""
    try:
        with connection.stream(path, params=params, headers={"Range": "bytes=0-1"}) as response:
            headers = response.headers
            described = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", ""))
            size = described[1] if described else headers.get("Content-Length")
            if size is None:
                raise connection.unexpected(response, "no size")
            return Content(
                int(size),
                headers.get("ETag", ""),
                _find_sha256(headers),
                headers.get("Content-Type", ""),
                _find_filename(headers),
            )
    except httpx.HTTPError as error:
        raise connection.unreachable(error) from error


def fetch(
    connection: Connection,
    path: str,
    target: Path,
    *,
    on_progress: Progress,
    params: Mapping[str, Any] | None = None,
    content: Content | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Content:
    """Download into ``target``, going on where an earlier try of the same content ended.

    Raises Failure when the server refuses, is away for too long, or what came is not what it announced.
    """
    content = content or probe(connection, path, params)
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(f"{content.tag}\n{content.size_bytes}".encode()).hexdigest()[:8]
    part = target.with_name(f".{target.name}.{mark}.part")
    part.touch()
    vain, pause_s = 0, PAUSE_FIRST_S
    while (have := part.stat().st_size) < content.size_bytes:
        problem: Exception = ConnectionError("the answer was too short")
        try:
            _append(connection, path, params, part, content=content, on_progress=on_progress)
        except httpx.HTTPError as error:
            problem = error
        if part.stat().st_size > have:
            vain, pause_s = 0, PAUSE_FIRST_S
            continue
        vain += 1
        if vain == TRIES:
            raise connection.unreachable(problem) from problem
        sleep(pause_s)
        pause_s = min(pause_s * 2, PAUSE_MAX_S)
    _verify(part, content)
    part.replace(target)
    return content


def _append(
    connection: Connection,
    path: str,
    params: Mapping[str, Any] | None,
    part: Path,
    *,
    content: Content,
    on_progress: Progress,
) -> None:
    have = part.stat().st_size
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    if content.tag:
        headers["If-Range"] = content.tag  # changed content comes whole, and then the size or the hash tells
    with connection.stream(path, params=params, headers=headers) as response, part.open("r+b") as file:
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            file.truncate(0)
            have = 0
        file.seek(have)
        for block in response.iter_raw():  # as it comes: asked for larger blocks, httpx loses what it holds in a drop
            file.write(block)
            have += len(block)
            on_progress(have, content.size_bytes)
        file.flush()
        os.fsync(file.fileno())


def _verify(part: Path, content: Content) -> None:
    size_bytes = part.stat().st_size
    problem = None
    if size_bytes != content.size_bytes:
        problem = f"{size_bytes} bytes came, {content.size_bytes} were announced"
    elif content.sha256:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != content.sha256:
            problem = f"its sha256 is {found}, the server announced {content.sha256}"
    if problem:
        part.unlink()
        raise Failure(
            "download_damaged",
            f"the download is damaged: {problem}",
            exit_code=Exit.SERVER,
            hint="it was removed; run the command again",
        )


def _find_sha256(headers: httpx.Headers) -> str | None:
    match = re.search(r"[0-9a-f]{64}", headers.get("ETag", ""))
    return match[0] if match else None


def _find_filename(headers: httpx.Headers) -> str | None:
    match = re.search(r'filename="?([^";]+)', headers.get("Content-Disposition", ""))
    return match[1] if match else None


def require_space(folder: Path, size_bytes: int) -> None:
    """Raise Failure when ``folder``'s disk has less than ``size_bytes`` free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise Failure(
            "disk_full",
            f"{folder} has {free:,} bytes free, {size_bytes:,} are needed",
            exit_code=Exit.USAGE,
            hint="name another place with -o",
        )
