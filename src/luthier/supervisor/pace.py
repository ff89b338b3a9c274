"""When to do something again: regular beats, and growing pauses after failures. Monotonic time throughout."""

from __future__ import annotations

import time

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0


class Beat:
    """Tells that ``every_s`` have passed; the first time at once."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next_at = 0.0

    def is_due(self) -> bool:
        """Return whether it is time, and count from now when it is."""
        now_s = time.monotonic()
        if now_s < self._next_at:
            return False
        self._next_at = now_s + self._every_s
        return True


class Backoff:
    """Pauses that double with each failure in a row."""

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._failing_since = 0.0
        self._until = 0.0

    @property
    def is_over(self) -> bool:
        """Whether it may be tried (again)."""
        return time.monotonic() >= self._until

    @property
    def failing_s(self) -> float:
        """How long every try has failed; 0 when the last one did not."""
        return time.monotonic() - self._failing_since if self._pause_s else 0.0

    def fail(self) -> float:
        """Note a failure and return the pause before the next try."""
        now_s = time.monotonic()
        if not self._pause_s:
            self._failing_since = now_s
        self._pause_s = min(2 * self._pause_s or FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._until = now_s + self._pause_s
        return self._pause_s

    def clear(self) -> None:
        """Note a success."""
        self._pause_s = self._until = 0.0
