"""Who may write to a SQLite file: one at a time, in the order of asking, and nobody waits for ever.

SQLite alone lets writers poll for the lock, and one of eight starves (p99 2.5 s against 39 ms). Threads wait
in a line, processes for ``flock``, in whose line the kernel puts them.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.errors import Unavailable

TIMEOUT_S = 30.0  # transactions take milliseconds: who has the file for so long is stopped, or hangs
RETRY_AFTER_S = 5


class FairLock:
    """A lock that is granted in the order of asking; ``threading.Lock`` lets one thread starve."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Event] = deque()

    def acquire(self, timeout_s: float) -> bool:
        """Return whether it was granted in time."""
        with self._mutex:
            if not self._held:
                self._held = True
                return True
            turn = threading.Event()
            self._waiting.append(turn)
        if turn.wait(timeout_s):
            return True
        with self._mutex:
            if turn.is_set():  # granted in this very moment
                return True
            self._waiting.remove(turn)
            return False

    def release(self) -> None:
        """Pass it on to who has waited longest."""
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().set()  # the lock stays held and passes on
            else:
                self._held = False


class _Waiter:
    """Waits for ``flock``, which knows no time-out, so that another thread may wait for this one no longer than it likes.

    A lock that comes when nobody wants it any more is let go at once.
    """

    def __init__(self, fd: int) -> None:

        self._fd = fd
        self._mutex = threading.Lock()
        self._granted = threading.Event()
        self._is_wanted = True
        self._is_over = False

    def run(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        with self._mutex:
            if self._is_wanted:
                self._granted.set()
            else:
                self._is_over = True
                os.close(self._fd)

    def want(self) -> bool:
        """Say that somebody waits again. False: it is too late, the lock was let go."""
        with self._mutex:
            self._is_wanted = not self._is_over
            return self._is_wanted

    def find_fd(self, timeout_s: float) -> int | None:
        """Return the descriptor once it has the lock, None when that takes too long."""
        self._granted.wait(timeout_s)
        with self._mutex:
            self._is_wanted = self._granted.is_set()
            return self._fd if self._is_wanted else None


class WriteGate:
    """Lets one writer in at a time: threads by a fair lock, processes by ``flock`` on ``path``."""

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._lock = FairLock()
        self._waiter: _Waiter | None = None  # left behind by a writer that gave up; at most one

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Wait for one's turn. Raises Unavailable when it does not come in time."""
        end_at = time.monotonic() + self._timeout_s
        if not self._lock.acquire(self._timeout_s):
            raise self._refuse()
        try:
            fd = self._lock_file(end_at)
            try:
                yield
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a forked child may have the descriptor too
                os.close(fd)
        finally:
            self._lock.release()

    def _lock_file(self, end_at: float) -> int:
        waiter, self._waiter = self._waiter, None
        if waiter is None or not waiter.want():
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiter = _Waiter(fd)
                _thread.start_new_thread(waiter.run, ())  # Thread.start would wait until it runs
            else:
                return fd
        locked = waiter.find_fd(max(0.0, end_at - time.monotonic()))
        if locked is None:
            self._waiter = waiter
            raise self._refuse()
        return locked

    def _refuse(self) -> Unavailable:
        return Unavailable(
            "database_busy",
            f"the server's database could not be written to for {self._timeout_s:g} s: another process holds it",
            hint=f"send the request again in a moment; the operator finds who holds it with: fuser {self._path.name}",
            retry_after_s=RETRY_AFTER_S,
        )
