"""Chores: checking files, fetching base models, tokenising; each in a process of its own, under limits.

A chore's directory holds ``process.json`` while it may be alive, so that the next supervisor of this home
ends what a dead one left running; its claim then runs out and the work is claimed again.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from luthier import faults, ids
from luthier.clock import Clock
from luthier.db import Database
from luthier.log import get_logger
from luthier.settings import Settings
from luthier.storage import ObjectStore, StorageFailed
from luthier.supervisor import environment, processes, work
from luthier.supervisor.durable import write_atomically
from luthier.supervisor.pace import Backoff
from luthier.supervisor.processes import Exit, Identity, Process
from luthier.supervisor.run_directory import find_last_line
from luthier.supervisor.work import Answer, Chore

CLAIM_S = 30.0  # how long the work of a dead supervisor waits for the next one
RENEW_EVERY_S = CLAIM_S / 3
PROCESS = "process.json"
LOG = "log"

Claim = Callable[..., Chore | None]

# How many of a kind at once. Checks are short and people wait for them; the others want the whole machine.
KINDS: dict[str, tuple[Claim, int]] = {
    "check": (work.claim_check, 2),
    "fetch": (work.claim_fetch, 1),
    "tokenise": (work.claim_tokenise, 1),
}

_log = get_logger(__name__)


@dataclass
class Running:
    """A chore under way."""

    chore: Chore
    directory: Path
    process: Process
    started_at: float = field(default_factory=time.monotonic)
    renewed_at: float = field(default_factory=time.monotonic)
    is_over_time: bool = False
    backoff: Backoff = field(default_factory=Backoff)


class Chores:
    """The chores of one supervisor."""

    def __init__(self, settings: Settings, database: Database, store: ObjectStore, clock: Clock) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._clock = clock
        self._root = settings.home / "chores"
        self._running: list[Running] = []
        self._has_finished = False
        self._backoffs = {kind: Backoff() for kind in KINDS}

    def clear_leftovers(self) -> None:
        """End what an earlier supervisor of this home left running and remove its directories."""
        self._root.mkdir(mode=0o700, exist_ok=True)
        for directory in self._root.iterdir():
            path = directory / PROCESS
            if path.exists():
                Process(msgspec.json.decode(path.read_bytes(), type=Identity), is_child=False).kill()
            shutil.rmtree(directory)

    def look_after(self) -> None:
        """Keep the claims of the chores under way, end those over their limits, write the answers."""
        done = [running for running in self._running if self._look_after(running)]
        self._running = [running for running in self._running if running not in done]
        self._has_finished |= bool(done)

    def take_finished(self) -> bool:
        """Return whether any chore was finished since the last call."""
        has_finished, self._has_finished = self._has_finished, False
        return has_finished

    def claim(self) -> None:
        """Start as many of each kind as may run at once."""
        for kind, (claim, limit) in KINDS.items():
            if sum(running.chore.kind == kind for running in self._running) < limit:
                self._start_one(kind, claim)

    def stop(self) -> None:
        """End every chore under way and give its claim back."""
        for running in self._running:
            running.process.kill()
            with self._database.transaction() as tx:
                running.chore.renew(tx, self._clock.now(), 0.0)
        self._running = []

    def _start_one(self, kind: str, claim: Claim) -> None:
        if not self._backoffs[kind].is_over:
            return
        chore = None
        try:
            with self._database.transaction() as tx:
                chore = claim(tx, self._settings, now=self._clock.now(), claim_s=CLAIM_S)
            if chore is not None:
                faults.hit("chore.after_claim")
                self._running.append(self._start(chore))
        except StorageFailed:
            raise
        except Exception as error:  # noqa: BLE001  one kind's trouble must not stop the others
            pause_s = self._backoffs[kind].fail()
            _log.exception("chore not started", kind=kind, subject=chore and chore.subject, again_in_s=pause_s)
            if chore is not None:
                self._fail(chore, f"it could not be started: {type(error).__name__}: {error}")
        else:
            self._backoffs[kind].clear()

    def _start(self, chore: Chore) -> Running:
        directory = self._root / ids.new_id(chore.kind)
        directory.mkdir(mode=0o700)
        module, *arguments = chore.prepare(self._store, directory)
        process = processes.start(
            [str(self._settings.worker_python or sys.executable), "-m", module, *arguments],
            directory=directory,
            env=self._make_environment(chore, directory),
            log=directory / LOG,
            memory_bytes=chore.memory_bytes,
            before_run=lambda identity: write_atomically(directory / PROCESS, msgspec.json.encode(identity)),
        )
        faults.hit("chore.after_start")
        _log.info("chore started", kind=chore.kind, subject=chore.subject, pid=process.identity.pid)
        return Running(chore, directory, process)

    def _make_environment(self, chore: Chore, directory: Path) -> dict[str, str]:
        if chore.needs_network:
            return environment.make_for_fetching(os.environ)
        return environment.make(os.environ, home=directory, threads=os.cpu_count() or 1)

    def _look_after(self, running: Running) -> bool:
        """Keep the claim, end the process when its time is over, write its answer; return whether that is done."""
        if not running.backoff.is_over:
            return False
        try:
            ended = running.process.find_exit()
            if ended is None:
                self._watch(running)
                return False
            self._finish(running, ended)
        except StorageFailed:
            raise
        except Exception:  # noqa: BLE001  the answer is still there: it is written as soon as that succeeds
            pause_s = running.backoff.fail()
            _log.exception(
                "chore not finished", kind=running.chore.kind, subject=running.chore.subject, again_in_s=pause_s
            )
            return False
        shutil.rmtree(running.directory, ignore_errors=True)
        return True

    def _watch(self, running: Running) -> None:
        now_s = time.monotonic()
        if now_s - running.started_at > running.chore.timeout_s:
            running.is_over_time = True
            running.process.kill()
        if now_s - running.renewed_at > RENEW_EVERY_S:
            with self._database.transaction() as tx:
                running.chore.renew(tx, self._clock.now(), CLAIM_S)
            running.renewed_at = now_s

    def _finish(self, running: Running, ended: Exit) -> None:
        chore = running.chore
        answer = _find_answer(running.directory)
        if answer is None or running.is_over_time:
            self._fail(chore, _describe_failure(running, ended))
            return
        chore.keep(self._store, running.directory, answer)
        faults.hit("chore.before_record")
        with self._database.transaction() as tx:
            chore.record(tx, answer, self._clock.now())
        faults.hit("chore.after_record")
        _log.info("chore done", kind=chore.kind, subject=chore.subject)

    def _fail(self, chore: Chore, message: str) -> None:
        _log.warning("chore failed", kind=chore.kind, subject=chore.subject, reason=message)
        with self._database.transaction() as tx:
            chore.fail(tx, message, self._clock.now())


def _find_answer(directory: Path) -> Answer | None:
    try:
        answer: Any = msgspec.json.decode((directory / work.RESULT).read_bytes())
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return answer if isinstance(answer, dict) else None


def _describe_failure(running: Running, ended: Exit) -> str:
    if running.is_over_time:
        return f"it took longer than {running.chore.timeout_s:g} s and was ended"
    if ended.out_of_memory:
        return "the machine ran out of memory, and the kernel killed it"
    if ended.signal is not None:
        return f"it was killed by signal {ended.signal}"
    words = find_last_line(running.directory / LOG)
    return f"it ended with exit code {ended.code}" + (f": {words}" if words else "")
