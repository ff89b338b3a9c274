"""Archives (.tar.zst) that are the same bytes for the same content, and are whole or absent."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from luthier.protocol.journal import FileEntry
from luthier.training.weights import WeightsFile

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL = 1  # trained weights are nearly noise: higher levels take longer and save nothing
BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Member:
    """A file of the archive: its name there and its bytes, which come in parts."""

    name: str
    size_bytes: int
    parts: Iterable[bytes | memoryview]


def make_member(name: str, content: bytes | str) -> Member:
    """Return a small file."""
    data = content.encode() if isinstance(content, str) else content
    return Member(name, len(data), [data])


class WeightsDigest:
    """Takes the SHA-256 of weights while they are written."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def make_member(self, name: str, file: WeightsFile) -> Member:
        """Return the weights as a member of an archive."""
        return Member(name, file.size_bytes, self._watch(file))

    def _watch(self, file: WeightsFile) -> Iterator[memoryview]:
        for part in file.iterate_bytes():
            self._digest.update(part)
            yield part

    def hexdigest(self) -> str:
        """Return the digest of what was written so far."""
        return self._digest.hexdigest()


def write_archive(run_directory: Path, path: str, members: Iterable[Member], *, threads: int) -> FileEntry:
    """Write ``path``, relative to the run directory, with members in the order of their names.

    Nothing in it depends on when, where or by whom it is written. Temporary name, fsync, rename, fsync of the folder.
    """
    target = run_directory / path
    target.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = target.with_name(f".{target.name}")
    try:
        with temporary.open("wb") as file:
            counted = _Counted(file)
            _write_tar(counted, members, threads)
            counted.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return FileEntry(path=path, size_bytes=counted.size_bytes, sha256=counted.digest.hexdigest())


def _write_tar(file: _Counted, members: Iterable[Member], threads: int) -> None:
    # The result does not depend on the number of workers, only on there being any (frames are cut the same way).
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: LEVEL,
        zstd.CompressionParameter.checksum_flag: 1,
        zstd.CompressionParameter.nb_workers: threads,
    }
    with (
        zstd.ZstdFile(file, "wb", options=options) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT, bufsize=BUFFER_BYTES) as tar,
    ):
        for member in sorted(members, key=lambda member: member.name):
            info = tarfile.TarInfo(member.name)  # mtime 0, owner 0, mode 0644
            info.size = member.size_bytes
            tar.addfile(info, _Parts(member.parts))


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Counted:
    """Passes bytes on, and keeps their number and digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size_bytes = 0
        self.digest = hashlib.sha256()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def write(self, data: bytes | memoryview, /) -> int:
        self.digest.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)


class _Parts(io.RawIOBase):
    """Reads as one file what comes in parts; tarfile wants exactly as many bytes as it asks for."""

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        super().__init__()
        self._parts = iter(parts)
        self._rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        out = bytearray()
        while len(out) < size:
            if not self._rest:
                part = next(self._parts, None)
                if part is None:
                    break
                self._rest = memoryview(part)
            taken = self._rest[: size - len(out)]
            out += taken
            self._rest = self._rest[len(taken) :]
        return bytes(out)
