"""Objects as files under one directory: temporary name → fsync → rename → fsync of the directory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from luthier import faults
from luthier.errors import Unavailable
from luthier.storage.store import BLOCK_BYTES, Bytes, ObjectMissing, StorageFailed, require_key

TEMPORARY_DIR = ".unfinished"  # no key can name it: segments of keys never open with a dot
WRITE_BEHIND_BYTES = 8 * 1024 * 1024  # the disk starts on this much at a time, so that fsync finds little left to do
_FULL = (errno.ENOSPC, errno.EDQUOT)

Fsync = Callable[[int], None]


class DiskStore:
    """Keeps objects under ``root``, which several processes may share. ``fsync`` is an argument so that it can fail."""

    def __init__(self, root: Path, *, fsync: Fsync = os.fsync) -> None:
        self.root = root
        self._fsync = fsync
        self._temporary_dir = root / TEMPORARY_DIR
        self._temporary_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put_file(self, key: str, source: Path, *, move: bool = False) -> None:
        """Keep a file's bytes, durably and at once; with ``move`` the source is given away and gone afterwards."""
        target = self._path(key)
        if move and self._try_move(source, target):
            return
        temporary = self._make_temporary_path()
        try:
            with _disk_full_named():
                shutil.copyfile(source, temporary)
                self._sync_file(temporary)
            self._publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        if move:
            source.unlink()

    def _try_move(self, source: Path, target: Path) -> bool:
        """Make the source itself the object; return False when it lies on another file system."""
        with _disk_full_named():
            self._sync_file(source)
        try:
            self._publish(source, target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
        return True

    def open_writer(self, key: str) -> DiskWriter:
        """Begin an object; nothing is visible under the key before ``commit``."""
        return DiskWriter(self, self._path(key), self._make_temporary_path())

    def open_reader(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to, not including, ``end``. Raises ObjectMissing before the first."""
        self.get_size(key)
        return self._read(key, start, end)

    def _read(self, key: str, start: int, end: int | None) -> Iterator[bytes]:
        try:
            file = self._path(key).open("rb", buffering=0)
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        with file:
            file.seek(start)
            while end is None or start < end:
                block = file.read(BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - start))
                if not block:
                    return
                start += len(block)
                yield block

    def get_size(self, key: str) -> int:
        """Return the object's size in bytes. Raises ObjectMissing."""
        try:
            return self._path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectMissing(key) from None

    def find_local_path(self, key: str) -> Path | None:
        """Return the object's own file, to be read only. Raises ObjectMissing."""
        self.get_size(key)
        return self._path(key)

    def fetch_file(self, key: str, destination: Path) -> None:
        """Make the object a file at ``destination``: a hard link, or a copy on another file system."""
        source = self._path(key)
        self.get_size(key)
        try:
            os.link(source, destination)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            with _disk_full_named():
                shutil.copyfile(source, destination)

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens when there is none."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._path(key).unlink()

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with ``prefix``, in no promised order."""
        folder, _, _ = prefix.rpartition("/")
        for parent, folders, names in os.walk(self.root / require_key(folder) if folder else self.root):
            folders[:] = [name for name in folders if name != TEMPORARY_DIR]
            for name in names:
                key = (Path(parent) / name).relative_to(self.root).as_posix()
                if key.startswith(prefix):
                    yield key

    def find_free_bytes(self) -> int | None:
        """Return the free space of the file system."""
        return shutil.disk_usage(self.root).free

    def require_writable(self) -> None:
        """Write and remove a small file. Raises Unavailable or OSError when that fails."""
        probe = self._make_temporary_path()
        with _disk_full_named():
            probe.write_bytes(b"probe")
        probe.unlink()

    def sweep_unfinished(self, *, older_than_s: float) -> int:
        """Remove temporary files that nobody has written to for this long; return how many."""
        deadline = time.time() - older_than_s  # wall clock: that is what the file system stamps
        count = 0
        for path in self._temporary_dir.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < deadline:
                    path.unlink()
                    count += 1
        return count

    def _path(self, key: str) -> Path:
        return self.root / require_key(key)

    def _make_temporary_path(self) -> Path:
        return self._temporary_dir / uuid.uuid4().hex

    def _publish(self, temporary: Path, target: Path) -> None:
        """Give a durable file its name, durably."""
        self._make_parents(target.parent)
        faults.hit("storage.before_rename")
        temporary.replace(target)
        faults.hit("storage.after_rename")
        self._sync_directory(target.parent)

    def _make_parents(self, folder: Path) -> None:
        """Make the directories down to ``folder``; each new one's name is made durable in its parent."""
        if folder.is_dir():
            return
        self._make_parents(folder.parent)
        with _disk_full_named():
            folder.mkdir(mode=0o700, exist_ok=True)
        self._sync_directory(folder.parent)

    def _sync_file(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            self.sync(fd, path)
        finally:
            os.close(fd)

    _sync_directory = _sync_file  # a directory is synced through a read-only descriptor, as a file may be

    def sync(self, fd: int, path: Path) -> None:
        """Make an open file durable. Raises StorageFailed, after which the process must end."""
        try:
            self._fsync(fd)
        except OSError as error:
            if error.errno in _FULL:
                raise  # late allocation found no space: the temporary file is dropped, nothing was promised
            raise StorageFailed(f"fsync failed: {path}: {error.strerror}") from error


class DiskWriter:
    """One object on its way into a ``DiskStore``."""

    def __init__(self, store: DiskStore, target: Path, temporary: Path) -> None:
        self._store = store
        self._target = target
        self._temporary = temporary
        with _disk_full_named():
            self._file = temporary.open("xb", buffering=0)
        self._written = 0
        self._started = 0

    def write(self, data: Bytes) -> None:
        """Append. Raises Unavailable (``disk_full``) when there is no space."""
        rest = memoryview(data)
        with _disk_full_named():
            while rest:
                rest = rest[self._file.write(rest) :]  # an unbuffered write may be short, e.g. just before ENOSPC
        self._written += len(data)
        if self._written - self._started >= WRITE_BEHIND_BYTES:
            self._start_writing()

    def _start_writing(self) -> None:
        """Have the kernel begin to write what came last, without waiting: on Linux that is what this advice does."""
        if sys.platform == "linux":
            length = self._written - self._started
            os.posix_fadvise(self._file.fileno(), self._started, length, os.POSIX_FADV_DONTNEED)
        self._started = self._written

    def commit(self) -> None:
        """Make the object durable, then visible; an object of the same key is replaced."""
        try:
            with self._file, _disk_full_named():
                self._store.sync(self._file.fileno(), self._temporary)
            self._store._publish(self._temporary, self._target)  # noqa: SLF001  the writer is the store's own half
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop what was written. Nothing happens after commit or when repeated."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_full_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise Unavailable(
            "disk_full",
            "the server's disk is full: nothing of this was kept",
            hint="free space under the server's home directory (delete files and old jobs), then send it again",
        ) from error
