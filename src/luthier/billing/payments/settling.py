"""What is not settled, looked at now and then: lost answers, cards and payments that wait for somebody."""

from __future__ import annotations

from datetime import datetime

from luthier.billing.payments import card_setups, cards, charges, refunds
from luthier.billing.payments.processor import Processor
from luthier.billing.policy import Policy
from luthier.db import Database


def settle_open(database: Database, processor: Processor, *, policy: Policy, now: datetime) -> None:
    """Ask the processor about everything whose look is due; twice is as good as once, in any number of processes.

    The row of each is taken for the length of a call, so that one process asks about it at a time.
    """
    if policy.processor == "manual":
        return
    charges.settle(database, processor, now=now)
    refunds.settle(database, processor, now=now)
    card_setups.settle(database, processor, now=now)
    cards.settle_removed(database, processor, now=now)
