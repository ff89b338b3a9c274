"""The home directory: made once, private to its owner, used by one server at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from luthier.errors import Conflict

if TYPE_CHECKING:  # pydantic takes 0.3 s to import, and the CLI reads its credentials here
    from luthier.settings import Settings

MASTER_KEY_BYTES = 32
MASTER_KEY = "master.key"
OTHERS = 0o077  # permission bits of everybody but the owner


class Credentials(msgspec.Struct, frozen=True, omit_defaults=True):
    """What ``credentials.json`` holds, so that the CLI on this machine needs no configuration.

    ``is_login``: a user chose this server with ``luthier login``; the one that is started here did not write it.
    """

    base_url: str
    api_key: str
    is_login: bool = False


def prepare(settings: Settings) -> bytes:
    """Make what is missing under home and return the master key. Raises Conflict for one that is damaged."""
    make_folders(settings)
    with contextlib.suppress(FileExistsError):
        _write_private(settings.home / MASTER_KEY, secrets.token_bytes(MASTER_KEY_BYTES))
    key = find_master_key(settings.home)
    assert key is not None, f"{settings.home / MASTER_KEY} was written and is not there"
    return key


def make_folders(settings: Settings) -> None:
    """Make the directories that are missing, and close home to everybody but its owner (0700)."""
    for folder in (settings.home, settings.objects_dir, settings.runs_dir, settings.models_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = stat.S_IMODE(settings.home.stat().st_mode)
    if mode & OTHERS:
        settings.home.chmod(mode & ~OTHERS)


def leads_into(path: Path, folder: Path) -> bool:
    """Tell whether ``path`` is ``folder`` or lies in it once symbolic links are followed; neither need exist."""
    # Path.resolve raises for links that go in a circle.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def find_master_key(home: Path) -> bytes | None:
    """Return the master key, None when there is none. Raises Conflict for one that is damaged."""
    path = home / MASTER_KEY
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(key) != MASTER_KEY_BYTES:
        raise Conflict(
            "master_key_damaged",
            f"{path} holds {len(key)} bytes, not {MASTER_KEY_BYTES}",
            hint="put the file back from a backup: the API keys of this installation are checked with it",
        )
    return key


def _write_private(path: Path, data: bytes) -> None:
    """Write a new 0600 file, durably, so that it is complete or absent. Raises FileExistsError when it exists."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        os.link(temporary, path)  # unlike rename, fails when the file exists
    finally:
        temporary.unlink()
    _sync_directory(path.parent)


def _sync_directory(folder: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_credentials(home: Path, credentials: Credentials) -> None:
    """Replace ``credentials.json`` (0600)."""
    path = home / "credentials.json"
    temporary = home / f".credentials.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    _write_private(temporary, msgspec.json.format(msgspec.json.encode(credentials), indent=2) + b"\n")
    temporary.replace(path)
    _sync_directory(home)


def find_credentials(home: Path) -> Credentials | None:
    """Return the stored credentials, or None when there are none that can be read."""
    try:
        return msgspec.json.decode((home / "credentials.json").read_bytes(), type=Credentials)
    except (OSError, msgspec.MsgspecError):
        return None


@contextlib.contextmanager
def locked(home: Path, role: str) -> Iterator[None]:
    """Hold ``HOME/ROLE.lock`` while the body runs.

    Raises Conflict when another living process holds it; a dead one's lock is free at once.
    """
    path = home / f"{role}.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 64, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                "home_in_use",
                f"{home} is in use by another luthier {role}: process {holder}",
                hint=f"stop it (kill {holder}), or choose another directory with --home",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)
