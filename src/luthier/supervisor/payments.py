"""Payments as the supervisor looks after them: what is not settled, automatic recharging, old webhooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from luthier.billing.payments import recharge, settling, webhooks
from luthier.billing.payments.processor import Processor
from luthier.billing.policy import Policy
from luthier.clock import Clock
from luthier.db import Database
from luthier.log import get_logger
from luthier.supervisor.pace import Beat

FORGET_EVERY_S: Final = 3600.0

_log = get_logger(__name__)


class Payments:
    """Looks after the payments of a database. ``tick`` calls the processor: it belongs into the background."""

    def __init__(self, database: Database, processor: Processor, policy: Policy, clock: Clock) -> None:
        self._database = database
        self._processor = processor
        self._policy = policy
        self._clock = clock
        self._forget = Beat(FORGET_EVERY_S)

    def tick(self) -> None:
        """Do one round; one part's trouble is logged and does not keep the others."""
        if self._policy.processor == "manual":
            return
        self._attempt("settle", partial(settling.settle_open, self._database, self._processor, policy=self._policy))
        self._attempt("recharge", partial(recharge.run_due, self._database, self._processor, policy=self._policy))
        if self._forget.is_due():
            self._attempt("forget", partial(webhooks.forget_old, self._database))

    def _attempt(self, name: str, part: Callable[..., object]) -> None:
        try:
            part(now=self._clock.now())
        except Exception:  # noqa: BLE001  one part's trouble must not stop the others
            _log.exception("payments not looked after", part=name)
