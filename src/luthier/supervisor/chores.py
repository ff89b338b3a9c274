"""Chores: checking files, fetching base models, tokenising; each in a process of its own, under limits.

A chore's directory holds ``process.json`` while it may be alive, so that the next supervisor of this home
ends what a dead one left running; its claim then runs out and the work is claimed again.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from luthier import faults, ids, machine
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


class LetGo(Exception):
    """The chore is not ours to go on with: the supervisor stops, or the claim went to another."""


@dataclass
class Running:
    """A chore under way, in a thread of its own."""

    chore: Chore
    directory: Path
    work: Future[None] = field(default_factory=Future)
    renewed_at: float = field(default_factory=time.monotonic)
    let_go: threading.Event = field(default_factory=threading.Event)
    process: Process | None = None


class Chores:
    """The chores of one supervisor. The loop claims, renews and collects; a thread for each chore does the rest."""

    def __init__(
        self, settings: Settings, database: Database, store: ObjectStore, clock: Clock, *, give_up_s: float
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._clock = clock
        self._give_up_s = give_up_s  # so long an answer that cannot be written is tried again; then the whole work is
        self._root = settings.home / "chores"
        self._threads = ThreadPoolExecutor(sum(limit for _, limit in KINDS.values()), thread_name_prefix="chore")
        self._running: list[Running] = []
        self._has_finished = False
        self._is_stopping = False
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
        """Collect the chores that are over and keep the claims of the others. Raises StorageFailed."""
        for running in [one for one in self._running if one.work.done()]:
            self._running.remove(running)
            self._has_finished = True
            running.work.result()
        for running in self._running:
            self._renew(running)

    def take_finished(self) -> bool:
        """Return whether any chore was finished since the last call."""
        has_finished, self._has_finished = self._has_finished, False
        return has_finished

    def claim(self) -> None:
        """Start as many of each kind as may run at once."""
        for kind, (claim, limit) in KINDS.items():
            is_free = sum(running.chore.kind == kind for running in self._running) < limit
            if is_free and self._backoffs[kind].is_over:
                self._claim_one(claim)

    def stop(self) -> None:
        """End every chore under way, give its claim back, and wait until that is done."""
        self._is_stopping = True
        for running in self._running:
            running.let_go.set()
        self._threads.shutdown()
        self._running = []

    def _claim_one(self, claim: Claim) -> None:
        with self._database.transaction() as tx:
            chore = claim(tx, self._settings, now=self._clock.now(), claim_s=CLAIM_S)
        if chore is not None:
            faults.hit("chore.after_claim")
            running = Running(chore, self._root / ids.new_id(chore.kind))
            running.work = self._threads.submit(self._do, running)
            self._running.append(running)

    def _renew(self, running: Running) -> None:
        now_s = time.monotonic()
        if now_s - running.renewed_at <= RENEW_EVERY_S:
            return
        with self._database.transaction() as tx:
            if running.chore.is_claimed(tx):
                running.chore.renew(tx, self._clock.now(), CLAIM_S)
            else:
                running.let_go.set()  # as good when it was finished just now
        running.renewed_at = now_s

    def _do(self, running: Running) -> None:
        """Do a whole chore. Raises StorageFailed."""
        try:
            self._write(running, self._work(running))
        except LetGo:
            _log.info("chore let go", kind=running.chore.kind, subject=running.chore.subject)
            if running.process is not None:
                running.process.kill()
            if self._is_stopping:
                self._give_back(running.chore)
        finally:
            shutil.rmtree(running.directory, ignore_errors=True)

    def _work(self, running: Running) -> Callable[[], None]:
        """Run the chore's process to its end; return what writes its outcome. Raises LetGo, StorageFailed."""
        chore, backoff = running.chore, self._backoffs[running.chore.kind]
        try:
            running.process = self._start(chore, running.directory)
        except StorageFailed:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the chore is tried again
            pause_s = backoff.fail()
            _log.exception("chore not started", kind=chore.kind, subject=chore.subject, again_in_s=pause_s)
            return partial(self._fail, chore, f"it could not be started: {type(error).__name__}: {error}")
        backoff.clear()
        ended = self._wait(running, running.process)
        if ended is None:
            message = f"it took longer than {chore.timeout_s:g} s and was ended"
            return partial(self._fail, chore, message, is_final=True)
        answer = _find_answer(running.directory)
        if answer is None:
            return partial(self._fail, chore, _describe_failure(running.directory, ended))
        return partial(self._record, chore, running.directory, answer)

    def _start(self, chore: Chore, directory: Path) -> Process:
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
        return process

    def _make_environment(self, chore: Chore, directory: Path) -> dict[str, str]:
        if chore.needs_network:
            return environment.make_for_fetching(os.environ)
        return environment.make(os.environ, home=directory, threads=machine.count_cpus())

    def _wait(self, running: Running, process: Process) -> Exit | None:
        """Return how the process ended; None when its time was over and it was ended. Raises LetGo."""
        end_at = time.monotonic() + running.chore.timeout_s
        while (ended := process.find_exit()) is None:
            if time.monotonic() > end_at:
                process.kill()
                return None
            _pause(running, self._settings.tick_s)
        return ended

    def _write(self, running: Running, write: Callable[[], None]) -> None:
        """Write the outcome, again until that succeeds; what never does becomes a failure. Raises LetGo."""
        chore, backoff = running.chore, Backoff()
        while True:
            try:
                write()
            except (LetGo, StorageFailed):
                raise
            except Exception as error:  # noqa: BLE001  the answer is still there: it is written as soon as that succeeds
                pause_s = backoff.fail()
                _log.exception("chore not finished", kind=chore.kind, subject=chore.subject, again_in_s=pause_s)
                if backoff.failing_s > self._give_up_s:
                    message = f"its result could not be kept: {type(error).__name__}: {error}"
                    write = partial(self._fail, chore, message)
            else:
                return
            _pause(running, pause_s)

    def _record(self, chore: Chore, directory: Path, answer: Answer) -> None:
        chore.keep(self._store, directory, answer)
        faults.hit("chore.before_record")
        with self._database.transaction() as tx:
            if not chore.is_claimed(tx):
                raise LetGo
            chore.record(tx, answer, self._clock.now())
        faults.hit("chore.after_record")
        _log.info("chore done", kind=chore.kind, subject=chore.subject)

    def _fail(self, chore: Chore, message: str, *, is_final: bool = False) -> None:
        _log.warning("chore failed", kind=chore.kind, subject=chore.subject, reason=message)
        with self._database.transaction() as tx:
            if not chore.is_claimed(tx):
                raise LetGo
            chore.fail(tx, message, self._clock.now(), is_final)

    def _give_back(self, chore: Chore) -> None:
        try:
            with self._database.transaction() as tx:
                if chore.is_claimed(tx):
                    chore.renew(tx, self._clock.now(), 0.0)
        except Exception:  # noqa: BLE001  the supervisor must come to its end; the claim runs out by itself
            _log.exception("claim not given back", kind=chore.kind, subject=chore.subject)


def _pause(running: Running, pause_s: float) -> None:
    if running.let_go.wait(pause_s):
        raise LetGo


def _find_answer(directory: Path) -> Answer | None:
    try:
        answer: Any = msgspec.json.decode((directory / work.RESULT).read_bytes())
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return answer if isinstance(answer, dict) else None


def _describe_failure(directory: Path, ended: Exit) -> str:
    if ended.out_of_memory:
        return "the machine ran out of memory, and the kernel killed it"
    if ended.signal is not None:
        return f"it was killed by signal {ended.signal}"
    words = find_last_line(directory / LOG)
    return f"it ended with exit code {ended.code}" + (f": {words}" if words else "")
