"""Archives that a worker announces: checked against what it said of them, then into the store, before any row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from luthier import faults
from luthier.protocol.journal import FileEntry
from luthier.storage import ObjectMissing, ObjectStore


@dataclass(frozen=True)
class Archive:
    """One archive as announced, and the name under which the store keeps it."""

    key: str
    entry: FileEntry


class ArchiveDamaged(Exception):
    """The file is not what the worker said; the message says in which way."""


def keep(store: ObjectStore, directory: Path, archive: Archive) -> None:
    """Move an announced archive from the run directory into the store; safe to repeat.

    The whole file is read and hashed first. Raises ArchiveDamaged, and what the store raises.
    """
    entry = archive.entry
    source = _find_inside(directory, entry.path)
    if source is None:
        _require_kept(store, archive)  # an earlier try moved it and died before the row
        return
    with source.open("rb") as file:
        _require_same(entry, source.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    faults.hit("ingest.before_store")
    store.put_file(archive.key, source, move=True)
    faults.hit("ingest.after_store")


def _find_inside(directory: Path, name: str) -> Path | None:
    """Return the regular file of this name, None when it is missing. The name comes from the worker."""
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ArchiveDamaged(f"{name}: outside the run directory")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ArchiveDamaged(f"{name}: not a regular file")
    return path if path.exists() else None


def _require_kept(store: ObjectStore, archive: Archive) -> None:
    digest, size_bytes = hashlib.sha256(), 0
    try:
        for block in store.open_reader(archive.key):
            digest.update(block)
            size_bytes += len(block)
    except ObjectMissing:
        raise ArchiveDamaged(f"{archive.entry.path}: the file is not there") from None
    _require_same(archive.entry, size_bytes, digest.hexdigest())


def _require_same(entry: FileEntry, size_bytes: int, sha256: str) -> None:
    if size_bytes != entry.size_bytes:
        raise ArchiveDamaged(f"{entry.path}: {size_bytes} bytes, not {entry.size_bytes}")
    if sha256 != entry.sha256:
        raise ArchiveDamaged(f"{entry.path}: its sha256 is {sha256}, not {entry.sha256}")
