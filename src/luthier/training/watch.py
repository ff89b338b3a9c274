"""What may end a run from outside: SIGTERM, a lease that nobody renews, and silence, which signs of life prevent."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from luthier.protocol import lease
from luthier.protocol.journal import Failed, JournalWriter, Working

LEASE_LOST_EXIT = 1
CHECKS_A_LEASE = 20  # the lease is looked at this often while it lasts: it is overrun by 5 % at most
WORKING_EVERY_S = 10.0  # far below any time-out for silence, and a journal of a few MB for a step of days


class Stopped(Exception):
    """The run was told to stop; the step that was under way is given up."""


def listen_for_stop() -> threading.Event:
    """Return what SIGTERM sets; ``Pulse`` looks at it before each batch."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    return stop


class Pulse:
    """Beats before each batch: tells that a long step or evaluation goes on, and ends one that should not."""

    def __init__(self, journal: JournalWriter, stop: threading.Event) -> None:
        self._journal = journal
        self._stop = stop
        self._told_at = time.monotonic()

    def beat(self, step: int, tokens: int) -> None:
        """Tell that ``tokens`` of this step are computed, but not more often than others need it. Raises Stopped."""
        self.require_wanted()
        if time.monotonic() - self._told_at >= WORKING_EVERY_S:
            self._journal.write(Working(step=step, tokens=tokens))
            self._told_at = time.monotonic()

    def require_wanted(self) -> None:
        """Raise Stopped when the run was told to stop."""
        if self._stop.is_set():
            raise Stopped


class LeaseWatch(threading.Thread):
    """Ends the process when the lease file was not touched for ``lease_s``, or for the grace that it grants.

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
            elif time.monotonic() - seen_at > (term_s := lease.read_term_s(self._path, self._lease_s)):
                self._end(term_s)

    def _find_touch(self) -> int | None:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None

    def _end(self, term_s: float) -> None:
        message = f"the lease was not renewed for {term_s:g} s, so another worker may have the job"
        try:
            self._journal.write(Failed(kind="lease_lost", message=message), durable=True)
        finally:
            os._exit(LEASE_LOST_EXIT)  # the training thread may be deep in a computation: no handlers, no flush
