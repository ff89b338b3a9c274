"""How workers are started: one protocol, one module for each kind of place."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from luthier.supervisor.processes import Exit


class Worker(Protocol):
    """A worker that was started, by this supervisor or by an earlier one."""

    def find_exit(self) -> Exit | None:
        """Return how it ended, None while it lives."""

    def terminate(self) -> None:
        """Ask it to stop after the step that it is in."""

    def kill(self) -> None:
        """End it and everything that it started, at once."""


class Launcher(Protocol):
    """Starts workers and finds them again. It never restarts one: the supervisor alone decides that."""

    def launch(self, directory: Path) -> Worker:
        """Start the worker of a prepared run directory; what ``find`` needs is durable before it runs.

        Raises OSError when it cannot be started.
        """

    def find(self, directory: Path) -> Worker | None:
        """Return the worker started there last, living or dead; None when none ever was."""
