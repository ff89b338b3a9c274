"""Workers as processes of this machine, one for each job, with nothing of the supervisor's environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from luthier import faults, machine
from luthier.protocol import layout
from luthier.settings import Settings
from luthier.supervisor import environment, processes
from luthier.supervisor.durable import write_atomically
from luthier.supervisor.processes import Identity, Process


class SubprocessLauncher:
    """Starts ``python -m luthier.training RUN_DIR`` here."""

    def __init__(self, settings: Settings) -> None:
        self._python = str(settings.worker_python or sys.executable)
        self._threads = get_threads(settings)

    def launch(self, directory: Path) -> Process:
        """Start the worker of a prepared run directory; ``worker.json`` names it before it runs."""

        def record(identity: Identity) -> None:
            faults.hit("launch.before_record")
            write_atomically(directory / layout.WORKER, msgspec.json.encode(identity))
            faults.hit("launch.after_record")

        process = processes.start(
            [self._python, "-m", "luthier.training", str(directory)],
            directory=directory,
            env=self._make_environment(directory),
            log=directory / layout.LOG,
            before_run=record,
        )
        faults.hit("launch.after_start")
        return process

    def find(self, directory: Path) -> Process | None:
        """Return the worker that ``worker.json`` names, living or dead; None when none was ever started."""
        try:
            text = (directory / layout.WORKER).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Process(msgspec.json.decode(text, type=Identity), is_child=False)

    def _make_environment(self, directory: Path) -> Mapping[str, str]:
        return environment.make(os.environ, home=directory, threads=self._threads)


def get_threads(settings: Settings) -> int:
    """Return how many CPU threads a worker may use: the setting, or its share of the processors."""
    return settings.worker_threads or max(1, machine.count_cpus() // settings.slots)
