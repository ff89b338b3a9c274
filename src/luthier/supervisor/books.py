"""The books, looked after by a supervisor.

Jobs that funds or a limit no longer cover are ended, payments settled, balances recharged, and the ledger verified daily.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from luthier import faults
from luthier.billing import audit, limits
from luthier.billing.payments.opening import build_processor
from luthier.jobs import endings
from luthier.log import get_logger
from luthier.supervisor.pace import Beat
from luthier.supervisor.payments import Payments
from luthier.supervisor.site import Site

ENFORCE_EVERY_S = 5.0
PAY_EVERY_S = 5.0
ALERT_EVERY_S = 60.0
VERIFY_LOOK_EVERY_S = 600.0  # whether a day has passed since the last time, by whomever

_log = get_logger(__name__)


class Books:
    """What one supervisor does about money; any number of them may do the same at the same time."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._enforcing = _Task(site, ENFORCE_EVERY_S, self.enforce)
        self._alerting = _Task(site, ALERT_EVERY_S, self.alert)
        self._verifying = _Task(site, VERIFY_LOOK_EVERY_S, self.verify)
        payments = Payments(
            site.database, build_processor(site.settings, currency=site.policy.currency), site.policy, site.clock
        )
        self._paying = _Task(site, PAY_EVERY_S, payments.tick)

    def tick(self) -> None:
        """Begin in the background what is due. Raises what the last round raised."""
        if self._site.policy.enabled:
            self._enforcing.tick()
            self._alerting.tick()
        if self._site.policy.processor != "manual":
            self._paying.tick()
        self._verifying.tick()

    def enforce(self) -> None:
        """Warn, and after the grace end, the newest jobs that funds or a limit no longer cover."""
        now = self._site.clock.now()
        with self._site.database.read() as tx:
            found = endings.review(tx, policy=self._site.policy, now=now)
        for job_id, excess in found.uncovered.items():
            with self._site.database.transaction() as tx:
                endings.warn_or_stop(tx, job_id, excess, self._site.policy, now=now)
            faults.hit("enforce.after_job")
        for job_id in found.covered_again:
            with self._site.database.transaction() as tx:
                endings.clear_deadline(tx, job_id, now=now)

    def alert(self) -> None:
        """Keep the alerts that no hold has told."""
        with self._site.database.transaction() as tx:
            limits.note_all_alerts(tx, now=self._site.clock.now())

    def verify(self) -> None:
        """Verify the ledger, unless somebody did in the last day; what was found is kept for the metrics."""
        with self._site.database.read() as tx:
            if not audit.is_due(tx, now=self._site.clock.now()):
                return
        result = audit.verify(self._site.database)
        with self._site.database.transaction() as tx:
            audit.record(tx, result, now=self._site.clock.now())
        for problem in result.problems:
            _log.critical("the ledger was altered", organization=problem.organization_id, problem=problem.message)
        # The heads stand in the log, outside the database: a chain that is written anew has others.
        _log.info("ledger verified", entries=result.entries, problems=len(result.problems), heads=result.heads)


class _Task:
    """One thing done in the background now and then, never twice at once."""

    def __init__(self, site: Site, every_s: float, run: Callable[[], None]) -> None:
        self._site = site
        self._beat = Beat(every_s)
        self._run = run
        self._running: Future[None] | None = None

    def tick(self) -> None:
        if self._running is not None:
            if not self._running.done():
                return
            running, self._running = self._running, None
            running.result()
        if self._beat.is_due():
            self._running = self._site.background.submit(self._run)
