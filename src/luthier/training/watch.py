"""What may end a run from outside: SIGTERM, and a lease that nobody renews."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from luthier.protocol.journal import Failed, JournalWriter

LEASE_LOST_EXIT = 1
CHECKS_A_LEASE = 20  # the lease is looked at this often while it lasts: it is overrun by 5 % at most


def listen_for_stop() -> threading.Event:
    """Return what SIGTERM sets; the loop looks at it after each step."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    return stop


class LeaseWatch(threading.Thread):
    """Ends the process when the lease file was not touched for ``lease_s``.

    By the monotonic clock since the last change that was seen, so neither a clock that jumps nor a process that was
    suspended is fooled: after a long sleep the file is looked at before the time is. A missing file counts as not
    touched.
    """

    def __init__(self, path: Path, lease_s: float, journal: JournalWriter) -> None:
        super().__init__(name="lease watch", daemon=True)
        self._path = path
        self._lease_s = lease_s
        self._journal = journal

    def run(self) -> None:
        """Watch until the process ends, or end it."""
        seen, seen_at = self._find_touch(), time.monotonic()
        while True:
            time.sleep(self._lease_s / CHECKS_A_LEASE)
            touched = self._find_touch()
            if touched not in (None, seen):
                seen, seen_at = touched, time.monotonic()
            elif time.monotonic() - seen_at > self._lease_s:
                self._end()

    def _find_touch(self) -> int | None:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None

    def _end(self) -> None:
        message = f"the lease was not renewed for {self._lease_s:g} s, so another worker may have the job"
        try:
            self._journal.write(Failed(kind="lease_lost", message=message), durable=True)
        finally:
            os._exit(LEASE_LOST_EXIT)  # the training thread may be deep in a computation: no handlers, no flush
