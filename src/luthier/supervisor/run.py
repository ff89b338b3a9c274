"""One job that this supervisor holds: its worker, its journal, until it is settled.

Nothing here must survive: all of it is read again from the database and the run directory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

from luthier import faults
from luthier.errors import Unavailable
from luthier.jobs import progress
from luthier.jobs.queue import ClaimOutdated, LeaseLost
from luthier.jobs.schemas import Claim, Outcome, ProgressUpdate
from luthier.jobs.states import IllegalMove
from luthier.log import get_logger
from luthier.protocol import journal, layout
from luthier.protocol.journal import JournalCorrupt
from luthier.supervisor import archives, decisions, ingest
from luthier.supervisor.archives import Archive, ArchiveDamaged
from luthier.supervisor.decisions import Abandon, Ending, Kill, Launch, Observation, Patience, Settle, Terminate
from luthier.supervisor.ingest import Stretch
from luthier.supervisor.launchers import Worker
from luthier.supervisor.pace import Backoff
from luthier.supervisor.preparation import CannotPrepare, prepare
from luthier.supervisor.processes import Exit
from luthier.supervisor.run_directory import RunDirectory, find_last_line
from luthier.supervisor.site import Site

STRETCHES_A_TICK = 8  # a journal that grows faster than it is ingested must not hold up the other jobs

_log = get_logger(__name__)


class Run:
    """A job under this supervisor's lease."""

    def __init__(self, site: Site, claim: Claim) -> None:
        settings = site.settings
        self.job_id = claim.job_id
        self._site = site
        self._claim = claim
        self._directory = RunDirectory(settings.runs_dir / claim.job_id)
        self._worker: Worker | None = None
        self._has_looked = False
        self._exit: Exit | None = None
        self._is_prepared = False
        self._launched_here = False
        self._patience = Patience(settings.stall_timeout_s, settings.cancel_grace_s)
        self._backoff = Backoff()
        self._task: Future[None] | None = None
        self._after_task: Callable[[], None] = lambda: None
        self._kept: set[Archive] = set()
        self._journal_size = 0
        self._grew_at = time.monotonic()
        self._caught_up = False
        self._ending: journal.Finished | journal.Failed | None = None
        self._ending_at = 0.0
        self._broken: Ending | None = None
        self._terminated_at: float | None = None

    @property
    def token(self) -> int:
        """The fencing token under which everything is written."""
        return self._claim.token

    def tick(self, held: Claim | None) -> bool:
        """Do what there is to do; return whether the run is over for this supervisor.

        ``held`` is the job as the database has it now, None when it is not this supervisor's any more.
        """
        if held is None or held.token != self.token:
            return self._apply(Abandon())
        self._claim = held
        may_try = self._backoff.is_over
        try:
            self._look()
            self._read()
            is_over = self._apply(decisions.decide(self._observe(), self._patience))
        except LeaseLost:
            return self._apply(Abandon())
        except (ClaimOutdated, IllegalMove) as error:
            _log.info("the job has changed since it was loaded", job=self.job_id, reason=str(error))
            return False  # cancelled, most likely: the next tick sees that
        if may_try and self._task is None:
            self._backoff.clear()
        return is_over

    def fail(self, error: Exception) -> float:
        """Note that a tick failed; return the pause before the next try. After long enough the run is broken."""
        pause_s = self._backoff.fail()
        give_up_s = self._site.give_up_s
        if self._backoff.failing_s > give_up_s and self._broken is None:
            is_full = isinstance(error, Unavailable) and error.code == "disk_full"
            kind, words = ("disk", "the server's disk is full") if is_full else ("platform", str(error))
            message = f"the server could not go on with the job for {give_up_s:g} s: {words}"
            self._broken = Ending("error", kind=kind, message=message, hint="create the job again when that is mended")
        return pause_s

    def _look(self) -> None:
        """See how the worker is. This comes before the journal is read: what a dead one wrote is then complete."""
        if self._broken is None and not self._has_looked:
            self._worker = self._site.launcher.find(self._directory.path)
            self._has_looked = True
        self._exit = self._worker.find_exit() if self._worker else None
        size = self._directory.get_journal_size()
        if size != self._journal_size:
            self._journal_size, self._grew_at = size, time.monotonic()

    def _read(self) -> None:
        """Bring the journal into the rows, as far as it goes now."""
        self._caught_up = False
        if not self._backoff.is_over or (self._task and not self._task.done()):
            return
        self._collect_task()
        try:
            self._caught_up = self._advance_far() and self._task is None
        except JournalCorrupt as error:
            self._broken = Ending("error", kind="platform", message=f"the worker's journal is damaged: {error}")

    def _advance_far(self) -> bool:
        """Write stretches until there is nothing more to do for now; return False when there still is."""
        for _ in range(STRETCHES_A_TICK):
            if self._broken is not None or self._task is not None or self._advance():
                return True
        return False

    def _advance(self) -> bool:
        """Write one stretch of the journal; return whether there is nothing more to do for now."""
        messages, end = journal.read(self._directory.journal, self._claim.journal_offset)
        stretch = ingest.cut(messages, end, claim=self._claim, kept=self._kept)
        if stretch.ending is not None and self._ending is None:
            self._ending, self._ending_at = stretch.ending, time.monotonic()
        if stretch.messages or stretch.begins_upload:
            self._write(stretch)
        if stretch.wanted:
            self._keep(stretch.wanted[0])
        return stretch.is_idle

    def _write(self, stretch: Stretch) -> None:
        now = self._site.clock.now()
        batch = ingest.translate(stretch, self._claim, now=now)
        with self._site.database.transaction() as tx:
            ingest.write(tx, self._claim, batch, now=now)
        faults.hit("ingest.after_commit")
        self._backoff.clear()
        self._claim = ingest.follow(self._claim, batch)

    def _keep(self, archive: Archive) -> None:
        """Store an archive in the background."""

        def note() -> None:
            self._kept.add(archive)

        self._begin(lambda: archives.keep(self._site.store, self._directory.path, archive), then=note)

    def _begin(self, task: Callable[[], None], *, then: Callable[[], None]) -> None:
        self._task = self._site.background.submit(task)
        self._after_task = then

    def _collect_task(self) -> None:
        """Take the result of a finished background task. Raises what it raised, but for what ends the job."""
        task, self._task = self._task, None
        if task is None:
            return
        try:
            task.result()
        except ArchiveDamaged as error:
            self._broken = Ending("error", kind="platform", message=f"an archive of the worker is damaged: {error}")
        except CannotPrepare as error:
            self._broken = Ending("error", kind=error.kind, message=str(error), hint=error.hint)
        else:
            self._backoff.clear()
            self._after_task()

    def _observe(self) -> Observation:
        now_s = time.monotonic()
        is_gone = self._exit is not None
        return Observation(
            state=self._claim.state,
            has_lease=True,
            worker="none" if self._worker is None else "gone" if is_gone else "alive",
            exit=self._exit,
            last_line=find_last_line(self._directory.path / layout.LOG) if is_gone else None,
            launched_here=self._launched_here,
            has_journal=self._claim.journal_offset > 0 or self._journal_size > 0,
            caught_up=self._caught_up,
            ending=self._ending,
            broken=self._broken,
            silent_s=now_s - self._grew_at,
            ending_s=now_s - self._ending_at,
            terminated_s=None if self._terminated_at is None else now_s - self._terminated_at,
        )

    def _apply(self, action: decisions.Action) -> bool:
        """Do what was decided; return whether the run is over for this supervisor."""
        match action:
            case Abandon():
                return self._abandon()
            case Launch():
                self._launch()
            case Terminate() if self._worker is not None:
                _log.info("worker asked to stop", job=self.job_id)
                self._worker.terminate()
                self._terminated_at = time.monotonic()
            case Kill(broken=broken) if self._worker is not None:
                _log.warning("worker killed", job=self.job_id, reason=broken and broken.message)
                self._broken = self._broken or broken
                self._worker.kill()
            case Settle(ending=ending):
                self._settle(ending)
                return True
            case _:
                pass
        return False

    def _abandon(self) -> bool:
        """End the worker and write nothing; return whether it is gone."""
        if self._worker is None:
            return True
        self._worker.kill()
        _log.warning("lease lost: the worker is ended and nothing is written", job=self.job_id)
        return self._worker.find_exit() is not None

    def _launch(self) -> None:
        """Prepare the run directory in the background, then, when that is done, start the worker."""
        if not self._is_prepared:

            def note() -> None:
                self._is_prepared = True

            claim = self._claim
            self._begin(lambda: prepare(self._site, claim, self._directory), then=note)
            return
        faults.hit("launch.before")
        self._worker = self._site.launcher.launch(self._directory.path)
        self._launched_here = True
        self._grew_at = time.monotonic()
        _log.info("worker started", job=self.job_id)

    def _settle(self, ending: Ending) -> None:
        """Write the job's end: last state, price and event in one transaction."""
        outcome = Outcome(state=ending.state, message=ending.message, hint=ending.hint, error_kind=ending.kind)
        now = self._site.clock.now()
        faults.hit("settle.before")
        with self._site.database.transaction() as tx:
            if isinstance(self._ending, journal.Finished):
                last = ProgressUpdate(step=self._ending.step, epochs_completed=self._ending.epochs_completed)
                progress.record(tx, self.job_id, self.token, last, now=now)
            progress.settle(tx, self.job_id, self.token, outcome, now=now)
        faults.hit("settle.after_commit")
        _log.info("job settled", job=self.job_id, state=ending.state, reason=ending.message)
