from __future__ import annotations

import asyncio
import hashlib
import threading

import pytest

from luthier.files.intake import BLOCK_BYTES, open_intake
from luthier.storage import DiskStore


class Disconnected(Exception):
    pass


def list_files(root):
    return sorted(path.name for path in root.rglob("*") if path.is_file())


async def receive(store, pieces, *, key="a", fail_after=None):
    async with open_intake(store, key) as intake:
        for number, piece in enumerate(pieces):
            if number == fail_after:
                raise Disconnected
            await intake.feed(piece)
        sha256 = await intake.finish()
        await intake.commit()
    return intake.size_bytes, sha256


@pytest.mark.parametrize(
    "sizes",
    [[], [0], [1], [BLOCK_BYTES], [BLOCK_BYTES - 1, 1, 1], [300_000] * 60, [3 * BLOCK_BYTES, 5]],
    ids=["nothing", "empty", "one", "block", "around a block", "many", "more than a block"],
)
def test_intake_keeps_all_bytes_in_order_and_tells_their_hash(tmp_path, sizes):
    store = DiskStore(tmp_path)
    pieces = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    whole = b"".join(pieces)
    assert asyncio.run(receive(store, pieces)) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert b"".join(store.open_reader("a")) == whole


def test_intake_when_the_sender_goes_keeps_nothing(tmp_path):
    store = DiskStore(tmp_path)
    pieces = [b"x" * BLOCK_BYTES] * 4
    with pytest.raises(Disconnected):
        asyncio.run(receive(store, pieces, fail_after=3))
    assert list_files(tmp_path) == []


def test_intake_when_cancelled_keeps_nothing(tmp_path):
    store = DiskStore(tmp_path)

    async def cancel_after(pieces: int) -> None:
        fed = asyncio.Event()

        async def stall() -> None:
            async with open_intake(store, "a") as intake:
                for _ in range(pieces):
                    await intake.feed(b"x" * BLOCK_BYTES)
                fed.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(stall())
        await fed.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for pieces in (1, 3):  # while the thread opens the file, and while it writes to it
        asyncio.run(cancel_after(pieces))
    assert list_files(tmp_path) == []


class BrokenWriter:
    """A writer whose disk breaks at the second block."""

    def __init__(self) -> None:
        self.blocks = 0
        self.aborted = False

    def write(self, data) -> None:
        self.blocks += 1
        if self.blocks == 2:
            raise OSError("the disk broke")

    def commit(self) -> None:
        raise AssertionError("never reached")

    def abort(self) -> None:
        self.aborted = True


class BrokenStore:
    def __init__(self) -> None:
        self.writer = BrokenWriter()

    def open_writer(self, key) -> BrokenWriter:
        return self.writer


def test_intake_when_a_write_fails_raises_and_aborts():
    store = BrokenStore()
    with pytest.raises(OSError, match="the disk broke"):
        asyncio.run(receive(store, [b"x" * BLOCK_BYTES] * 10))
    assert store.writer.aborted
    assert store.writer.blocks == 2


class SlowWriter(BrokenWriter):
    """A writer that waits for leave before each block."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = threading.Semaphore(0)

    def write(self, data) -> None:
        self.leave.acquire()

    def commit(self) -> None:
        pass


def test_intake_when_the_disk_is_slow_holds_the_sender_back():
    store = BrokenStore()
    store.writer = SlowWriter()
    fed = 0

    async def feed_all() -> None:
        nonlocal fed
        async with open_intake(store, "a") as intake:
            for _ in range(5):
                await intake.feed(b"x" * BLOCK_BYTES)
                fed += 1
            await intake.finish()

    async def watch() -> int:
        task = asyncio.create_task(feed_all())
        for _ in range(1000):  # turns of the loop, enough for all five if nothing held them back
            await asyncio.sleep(0)
        seen = fed
        store.writer.leave.release(5)
        await task
        return seen

    assert asyncio.run(watch()) == 1
    assert fed == 5
