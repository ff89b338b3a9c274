"""The leases of the jobs that run here, renewed from a thread of their own: no work of a tick can starve them."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

from luthier.jobs import queue
from luthier.jobs.schemas import Claim
from luthier.log import get_logger
from luthier.supervisor.run_directory import RunDirectory
from luthier.supervisor.site import Site

RENEWALS_A_LEASE = 3
TRIES_A_LEASE = 30  # so often it is tried again once a renewal failed
STUCK_S = 600.0  # a loop that has not come round for so long does nothing for its jobs: let others have them
JOIN_S = 5.0
GRACE_S = 600.0  # a restart in good order, with an upgrade in between; a supervisor that was killed leaves lease_s

_log = get_logger(__name__)


@dataclass(frozen=True)
class _Kept:
    job_id: str
    token: int
    directory: RunDirectory


class Leases:
    """Keeps every lease that it is told of, in the database and in the run directory, until it is lost or dropped."""

    def __init__(self, site: Site, *, stuck_s: float = STUCK_S) -> None:
        self._site = site
        self._stuck_s = stuck_s
        self._kept: dict[str, _Kept] = {}
        self._mutex = threading.Lock()
        self._ticked_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_forever, name="leases", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Renew no more, but for a last time: the workers go on for ``GRACE_S``, so that a restart finds them."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)
        kept = list(self._kept.values())
        try:
            lost = self._prolong(kept, GRACE_S)
        except Exception:  # noqa: BLE001  the supervisor must come to its end; the leases run out by themselves
            _log.exception("no grace was granted to the workers")
            return
        for one in kept:
            if one not in lost and one.directory.path.is_dir():
                one.directory.grant_grace(GRACE_S)

    def keep(self, claim: Claim) -> None:
        """Keep a lease that was just given."""
        directory = RunDirectory(self._site.settings.runs_dir / claim.job_id)
        with self._mutex:
            self._kept[claim.job_id] = _Kept(claim.job_id, claim.token, directory)

    def drop(self, job_id: str) -> None:
        """Let a lease be; nothing happens when it was lost already."""
        with self._mutex:
            self._kept.pop(job_id, None)

    def note_tick(self) -> None:
        """Hear that the loop comes round."""
        self._ticked_at = time.monotonic()

    def renew(self) -> float:
        """Renew every lease; return how long it has time until the next time."""
        lease_s = self._site.settings.lease_s
        with self._mutex:
            kept = list(self._kept.values())
        if time.monotonic() - self._ticked_at > self._stuck_s:
            _log.error("leases not renewed: the supervisor's loop is stuck", stuck_s=self._stuck_s)
            return lease_s / RENEWALS_A_LEASE
        try:
            lost = self._prolong(kept, lease_s)
        except Exception:  # noqa: BLE001  a round of the thread: what is wrong now may be right at the next
            _log.exception("leases not renewed", again_in_s=lease_s / TRIES_A_LEASE)
            if self._site.database.is_sqlite:  # who cannot write to it cannot be followed by another owner either
                _touch(kept)
            return lease_s / TRIES_A_LEASE
        for one in lost:
            _log.warning("lease lost", job=one.job_id)
            self.drop(one.job_id)
        _touch([one for one in kept if one not in lost])
        return lease_s / RENEWALS_A_LEASE

    def _prolong(self, kept: Collection[_Kept], lease_s: float) -> list[_Kept]:
        """Renew in the database; return what is held no more."""
        if not kept:
            return []
        now = self._site.clock.now()
        with self._site.database.transaction() as tx:
            return [one for one in kept if not queue.renew(tx, one.job_id, token=one.token, lease_s=lease_s, now=now)]

    def _renew_forever(self) -> None:
        pause_s = 0.0
        while not self._stop.wait(pause_s):
            pause_s = self.renew()


def _touch(kept: Collection[_Kept]) -> None:
    """Tell the workers that they still have their leases. Until it is prepared a job has no directory."""
    for one in kept:
        if one.directory.path.is_dir():
            one.directory.touch_lease()
            one.directory.trim_log()
