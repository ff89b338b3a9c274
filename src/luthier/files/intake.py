"""One file's bytes on their way into the store: hashed and written as they come, in bounded memory.

While a block is hashed and written by two threads, the event loop collects the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from luthier.storage import ObjectStore, ObjectWriter

# A hand-over between threads costs about 0.1 ms; a block of this size takes a few milliseconds to hash.
BLOCK_BYTES = 4 * 1024 * 1024


class Intake:
    """Takes bytes in order. At most two blocks are in memory: one collected, one being worked on."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key
        self._writer: ObjectWriter | None = None  # opened by the thread that writes, with the first block
        self._digest = hashlib.sha256()
        self._collected: list[bytes] = []
        self._collected_bytes = 0
        self._working: list[asyncio.Future[None]] = []
        self._working_bytes = 0
        self.size_bytes = 0

    @property
    def waiting_bytes(self) -> int:
        """Count the bytes that were taken and may not be written yet."""
        return self._collected_bytes + self._working_bytes

    async def feed(self, data: bytes) -> None:
        """Take the next bytes; waits when the disk is slower than the sender."""
        self._collected.append(data)
        self._collected_bytes += len(data)
        self.size_bytes += len(data)
        if self._collected_bytes >= BLOCK_BYTES:
            await self._hand_over()

    async def finish(self) -> str:
        """Return the sha256 of all bytes, in hex, once all are written."""
        await self._hand_over()
        await self._settle()
        return self._digest.hexdigest()

    async def commit(self) -> None:
        """Make the object durable and visible."""
        assert self._writer, "commit comes after finish"
        await self._run(self._writer.commit)

    async def abort(self) -> None:
        """Drop everything. Nothing happens after commit."""
        if self._working:
            await asyncio.wait(self._working)  # the writer is used by one thread at a time
        if self._writer:
            await self._run(self._writer.abort)

    async def _hand_over(self) -> None:
        await self._settle()
        block, self._collected = self._collected, []
        self._working_bytes, self._collected_bytes = self._collected_bytes, 0
        # Piece by piece: joining them would cost a third of the whole upload's processor time.
        self._working = [self._run(self._hash, block), self._run(self._write, block)]

    def _hash(self, block: Sequence[bytes]) -> None:
        for piece in block:
            self._digest.update(piece)

    def _write(self, block: Sequence[bytes]) -> None:
        self._writer = self._writer or self._store.open_writer(self._key)
        for piece in block:
            self._writer.write(piece)

    async def _settle(self) -> None:
        """Wait for the block being worked on; raise what went wrong with it."""
        if self._working:
            await asyncio.wait(self._working)
            working, self._working = self._working, []
            for future in working:
                future.result()

    @staticmethod
    def _run(function: Callable[..., None], *arguments: object) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(None, function, *arguments)


@asynccontextmanager
async def open_intake(store: ObjectStore, key: str) -> AsyncIterator[Intake]:
    """Begin an object; unless the body commits it, nothing of it stays."""
    intake = Intake(store, key)
    try:
        yield intake
    finally:
        await intake.abort()
