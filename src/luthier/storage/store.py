"""What every object store promises, and the faults of the world that it meets.

A full disk is the one fault that a caller can act on, so it is a ``ServiceError`` (``disk_full``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

Bytes = bytes | bytearray | memoryview

BLOCK_BYTES = 1024 * 1024  # what readers yield at most: large enough that the loop around it costs nothing
KEY_MAX_LENGTH = 512

# Segments of letters, digits, dot, dash and underscore that do not open with a dot: so a key can neither climb out
# of the root nor meet the store's own names there, and it means the same on every file system and in every URL.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


class ObjectMissing(Exception):
    """There is no object under this key."""


class StorageFailed(Exception):
    """The medium did not keep what it was given (a failed fsync).

    Fatal: what the operating system holds in memory may differ from what is on the medium, and asking again
    would report success. The process that meets it must end; the next one reads the truth from the medium.
    """


class ObjectWriter(Protocol):
    """One object on its way in. Used by one thread at a time."""

    def write(self, data: Bytes) -> None:
        """Append. Raises Unavailable (``disk_full``) when there is no space."""

    def commit(self) -> None:
        """Make the object durable, then visible; an object of the same key is replaced."""

    def abort(self) -> None:
        """Drop what was written. Nothing happens after commit or when repeated."""


class ObjectStore(Protocol):
    """Bytes by key. Every method may be called from any thread."""

    def put_file(self, key: str, source: Path, *, move: bool = False) -> None:
        """Keep a file's bytes, durably and at once; with ``move`` the source is given away and gone afterwards."""

    def open_writer(self, key: str) -> ObjectWriter:
        """Begin an object; nothing is visible under the key before ``commit``."""

    def open_reader(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to, not including, ``end``. Raises ObjectMissing before the first."""

    def get_size(self, key: str) -> int:
        """Return the object's size in bytes. Raises ObjectMissing."""

    def find_local_path(self, key: str) -> Path | None:
        """Return a path to read the object from on this machine; None when there is none. Raises ObjectMissing."""

    def fetch_file(self, key: str, destination: Path) -> None:
        """Make the object a file at ``destination``, which must not exist: a hard link where possible.

        The file must not be written to: it may be the object itself. Raises ObjectMissing.
        """

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens when there is none."""

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with ``prefix``, in no promised order."""

    def find_free_bytes(self) -> int | None:
        """Return how much more can be kept; None when that is not known."""

    def require_writable(self) -> None:
        """Raise Unavailable or OSError when nothing can be written now."""

    def sweep_unfinished(self, *, older_than_s: float) -> int:
        """Remove what writers that died left behind, untouched for this long; return how many."""


def require_key(key: str) -> str:
    """Return the key. Raises ValueError for a malformed one: this service makes keys, callers never do."""
    if len(key) > KEY_MAX_LENGTH or not _KEY.fullmatch(key):
        raise ValueError(f"malformed object key: {key[:KEY_MAX_LENGTH]!r}")
    return key
