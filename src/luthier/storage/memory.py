"""Objects in memory: for tests and simulations, held by the same contract tests as the disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from luthier.storage.store import BLOCK_BYTES, Bytes, ObjectMissing, require_key


class MemoryStore:
    """Keeps objects in a dictionary; they are gone with the process."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put_file(self, key: str, source: Path, *, move: bool = False) -> None:
        """Keep a file's bytes; with ``move`` the source is gone afterwards."""
        self.put_bytes(key, source.read_bytes())
        if move:
            source.unlink()

    def put_bytes(self, key: str, data: bytes) -> None:
        """Keep bytes at once."""
        with self._lock:
            self._objects[require_key(key)] = data

    def open_writer(self, key: str) -> MemoryWriter:
        """Begin an object; nothing is visible under the key before ``commit``."""
        return MemoryWriter(self, require_key(key))

    def open_reader(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to, not including, ``end``. Raises ObjectMissing."""
        data = memoryview(self._get(key))[start:end]
        return (bytes(data[offset : offset + BLOCK_BYTES]) for offset in range(0, len(data), BLOCK_BYTES))

    def get_size(self, key: str) -> int:
        """Return the object's size in bytes. Raises ObjectMissing."""
        return len(self._get(key))

    def find_local_path(self, key: str) -> Path | None:
        """Return None: there is no file. Raises ObjectMissing."""
        self._get(key)
        return None

    def fetch_file(self, key: str, destination: Path) -> None:
        """Write the object to ``destination``. Raises ObjectMissing."""
        data = self._get(key)
        with destination.open("xb") as file:
            file.write(data)

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens when there is none."""
        with self._lock:
            self._objects.pop(require_key(key), None)

    def list_keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with ``prefix``."""
        with self._lock:
            keys = list(self._objects)
        return (key for key in keys if key.startswith(prefix))

    def find_free_bytes(self) -> int | None:
        """Return None: it is not known."""
        return None

    def require_writable(self) -> None:
        """Do nothing: memory can be written to."""

    def sweep_unfinished(self, *, older_than_s: float) -> int:
        """Return 0: what a dead process left unfinished died with it."""
        del older_than_s
        return 0

    def _get(self, key: str) -> bytes:
        with self._lock:
            try:
                return self._objects[require_key(key)]
            except KeyError:
                raise ObjectMissing(key) from None


class MemoryWriter:
    """One object on its way into a ``MemoryStore``."""

    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._data = bytearray()

    def write(self, data: Bytes) -> None:
        """Append."""
        self._data += data

    def commit(self) -> None:
        """Make the object visible; an object of the same key is replaced."""
        self._store.put_bytes(self._key, bytes(self._data))

    def abort(self) -> None:
        """Drop what was written. Nothing happens after commit or when repeated."""
        self._data.clear()
