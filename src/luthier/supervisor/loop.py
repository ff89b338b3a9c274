"""The supervisor's loop. Level-triggered: each tick reads how things are and does what is missing.

A tick that finds nothing to do changes nothing; a supervisor that dies anywhere loses nothing, because
what it knows beyond the database and the run directories is only when to look again.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from luthier import faults, home, ids
from luthier.billing.policy import make_policy
from luthier.clock import Clock, SystemClock
from luthier.db import Database
from luthier.db.changes import Changes
from luthier.jobs import queue, supervisors
from luthier.jobs import service as jobs
from luthier.jobs.schemas import Claim
from luthier.log import get_logger
from luthier.settings import Settings
from luthier.storage import ObjectStore, StorageFailed, open_store
from luthier.supervisor import sweeps
from luthier.supervisor.books import Books
from luthier.supervisor.chores import Chores
from luthier.supervisor.durable import write_atomically
from luthier.supervisor.launchers import Launcher
from luthier.supervisor.launchers.subprocess import SubprocessLauncher
from luthier.supervisor.leases import Leases
from luthier.supervisor.pace import Backoff, Beat
from luthier.supervisor.run import Run
from luthier.supervisor.site import Site

HEARTBEAT_EVERY_S = 5.0  # the API calls a supervisor gone after 15 s
GIVE_UP_S = 600.0
LOOK_EVERY_S = 1.0  # claims and leases run out without a commit
EXIT_STORAGE_FAILED = 74  # EX_IOERR of sysexits.h
PENDING_A_TICK = 50  # a thousand that wait for the same file must not hold up the jobs that run
ADVANCE_EVERY_S = 2.0  # what a pending job waits for may also be done by another supervisor

_log = get_logger(__name__)


class Supervisor:
    """Runs the jobs and chores of one home. ``owner`` is the home's name in leases: one living supervisor has it."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ObjectStore,
        clock: Clock,
        owner: str,
        *,
        launcher: Launcher | None = None,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        self._background = ThreadPoolExecutor(settings.slots + 3, thread_name_prefix="supervisor")
        launcher = launcher or SubprocessLauncher(settings)
        policy = make_policy(settings)
        self._site = Site(settings, database, store, clock, launcher, self._background, give_up_s, policy)
        self._owner = owner
        self._books = Books(self._site)
        self._chores = Chores(settings, database, store, clock, give_up_s=give_up_s)
        self._runs: dict[str, Run] = {}
        self._seen_pending: frozenset[str] = frozenset()
        self._due_pending: list[str] = []
        self._held: dict[str, Claim] = {}
        self._is_stale = True  # what is held may have changed since it was loaded
        self._leases = Leases(self._site)
        self._changes = Changes(database)
        self._look = Beat(LOOK_EVERY_S)
        self._heartbeat = Beat(HEARTBEAT_EVERY_S)
        self._adoption = Beat(settings.lease_s / 3)
        self._advance = Beat(ADVANCE_EVERY_S)
        self._sweep = Beat(sweeps.SWEEP_EVERY_S)
        self._sweeping: Future[None] | None = None
        self._backoffs: dict[str, Backoff] = {}

    def run_forever(self, stop: threading.Event) -> None:
        """Tick until ``stop`` is set. Workers go on then; chores are ended and begun again by the next supervisor."""
        self._chores.clear_leftovers()
        self._leases.start()
        while not stop.is_set():
            self.tick()
            stop.wait(self._site.settings.tick_s)
        self.close()

    def close(self) -> None:
        """End the chores and wait for background work; leave the workers alone."""
        self._leases.stop()
        self._chores.stop()
        self._background.shutdown(cancel_futures=True)
        self._changes.close()

    def tick(self) -> None:
        """Do one round: what is under way always, the tables only when somebody wrote, or now and then."""
        self._leases.note_tick()
        has_news = self._changes.have_come() or self._look.is_due() or bool(self._due_pending)
        self._guarded("heartbeat", self._beat)
        self._guarded("chores", self._chores.look_after)
        if has_news:
            self._guarded("new chores", self._chores.claim)
            self._guarded("pending jobs", self._advance_pending)
            self._guarded("adoption", self._adopt)
            self._guarded("queue", self._claim)
        self._guarded("runs", partial(self._tick_runs, has_news=has_news))
        self._guarded("books", self._books.tick)
        self._guarded("sweep", self._tick_sweep)

    def _guarded(self, name: str, part: Callable[[], None]) -> None:
        """Do one part of the tick; a failure is logged and pauses this part alone."""
        backoff = self._backoffs.setdefault(name, Backoff())
        if not backoff.is_over:
            return
        if self._attempt(name, part):
            backoff.clear()
        else:
            backoff.fail()

    def _attempt(self, name: str, part: Callable[[], None]) -> bool:
        """Do something and return whether it went well; what it raises is logged."""
        try:
            part()
        except StorageFailed:
            raise
        except Exception:  # noqa: BLE001  one item's trouble must not stop the others
            _log.exception("part of a tick failed", part=name)
            return False
        return True

    def _beat(self) -> None:
        if not self._heartbeat.is_due():
            return
        with self._site.database.transaction() as tx:
            supervisors.heartbeat(
                tx,
                id=self._owner,
                host=socket.gethostname(),
                pid=os.getpid(),
                slots=self._site.settings.slots,
                now=self._site.clock.now(),
            )

    def _advance_pending(self) -> None:
        """Move jobs on whose file, model or tokens have become ready: new ones at once, the others now and then."""
        with self._site.database.read() as tx:
            pending = jobs.list_pending(tx)
        is_all_due = self._chores.take_finished() or self._advance.is_due()
        due = [job_id for job_id in pending if is_all_due or job_id not in self._seen_pending]
        self._seen_pending = frozenset(pending)
        left_over = [job_id for job_id in self._due_pending if job_id in self._seen_pending]
        self._due_pending = list(dict.fromkeys([*left_over, *due]))  # who has waited comes first, so all have a turn
        now, self._due_pending = self._due_pending[:PENDING_A_TICK], self._due_pending[PENDING_A_TICK:]
        for job_id in now:
            self._attempt(f"pending job {job_id}", partial(self._advance_one, job_id))

    def _advance_one(self, job_id: str) -> None:
        with self._site.database.transaction() as tx:
            jobs.advance_pending(tx, job_id, policy=self._site.policy, now=self._site.clock.now())

    def _adopt(self) -> None:
        """Take over what this home's last supervisor left, and jobs of any other whose lease ran out."""
        if not self._adoption.is_due():
            return
        with self._site.database.transaction() as tx:
            claims = queue.adopt(
                tx, owner=self._owner, lease_s=self._site.settings.lease_s, now=self._site.clock.now(), held=self._runs
            )
        faults.hit("adopt.after_commit")
        for claim in claims:
            _log.info("job taken over", job=claim.job_id, state=claim.state)
            self._follow(claim)

    def _follow(self, claim: Claim) -> None:
        self._leases.keep(claim)
        self._runs[claim.job_id] = Run(self._site, claim)

    def _claim(self) -> None:
        """Take the oldest job of the queue when a slot is free; one a tick, so that each starts before the next."""
        if len(self._runs) >= self._site.settings.slots:
            return
        faults.hit("claim.before")
        with self._site.database.transaction() as tx:
            claim = queue.claim(tx, owner=self._owner, lease_s=self._site.settings.lease_s, now=self._site.clock.now())
        if claim is not None:
            faults.hit("claim.after_commit")
            self._follow(claim)

    def _tick_runs(self, *, has_news: bool) -> None:
        if not self._runs:
            return
        self._is_stale |= has_news
        if self._is_stale:
            with self._site.database.read() as tx:
                self._held = {claim.job_id: claim for claim in queue.list_held(tx, self._owner)}
            self._is_stale = False
        for run in list(self._runs.values()):
            self._tick_run(run, self._held.get(run.job_id))

    def _tick_run(self, run: Run, held: Claim | None) -> None:
        try:
            is_over = run.tick(held)
        except StorageFailed:
            raise
        except Exception as error:  # noqa: BLE001  one item's trouble must not stop the others
            self._is_stale = True  # who knows what of it was written
            _log.exception("job could not be followed", job=run.job_id, again_in_s=run.fail(error))
        else:
            if is_over:
                del self._runs[run.job_id]
                self._leases.drop(run.job_id)

    def _tick_sweep(self) -> None:
        if self._sweeping is not None and self._sweeping.done():
            sweeping, self._sweeping = self._sweeping, None
            sweeping.result()
        if self._sweep.is_due():
            self._sweeping = self._background.submit(sweeps.sweep, self._site, held=frozenset(self._runs))


def run(settings: Settings, *, stop: threading.Event) -> None:
    """Supervise a home until ``stop`` is set; the home is prepared and the schema up to date.

    Stopping leaves workers alive, and so does killing this process: the next supervisor of the home
    takes them over. Raises Conflict when another one is alive.
    """
    with home.locked(settings.home, "supervisor"), _opened(settings) as database:
        store = open_store(settings)
        owner = get_owner(settings.home)
        _log.info("supervisor started", owner=owner, slots=settings.slots)
        try:
            Supervisor(settings, database, store, SystemClock(), owner).run_forever(stop)
        except StorageFailed:
            _log.critical("the disk does not keep what it is given; ending at once", exc_info=True)
            os._exit(EXIT_STORAGE_FAILED)  # no waiting for threads that may hang on that disk
        _log.info("supervisor stopped")


@contextlib.contextmanager
def _opened(settings: Settings) -> Iterator[Database]:
    database = Database(settings.resolved_database_url)
    try:
        yield database
    finally:
        database.dispose()


def get_owner(home_dir: Path) -> str:
    """Return the home's own name in leases, made once and kept in ``supervisor.id``."""
    path = home_dir / "supervisor.id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        owner = ids.new_id("supervisor")
        write_atomically(path, owner.encode())
        return owner
