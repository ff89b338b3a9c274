"""Transfers for three jobs, to be made by a process that may die in the middle."""

from __future__ import annotations

import multiprocessing

from factories import make_purchase
from luthier import faults
from luthier.billing import ledger
from luthier.billing.ledger import Cause
from luthier.clock import SystemClock
from luthier.db import Database

DOLLAR = 1_000_000_000
JOBS = 3

_processes = multiprocessing.get_context("forkserver")


def run(database: Database, organization_id: str, armed: str = "") -> int | None:
    """Do everything in a process of its own, with fault points armed as in LUTHIER_FAULTS; return its exit code."""
    url = database.engine.url.render_as_string(hide_password=False)
    process = _processes.Process(target=do_everything, args=(url, organization_id, armed))
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    return code


def do_everything(url: str, organization_id: str, armed: str) -> None:
    """Pay in, hold, capture and refund for three jobs, each transfer in a transaction of its own."""
    faults._armed = faults._parse(armed)
    faults._hits.clear()
    database = Database(url)
    now = SystemClock().now()
    for number in range(JOBS):
        job_id, cause = f"ft-{number}", Cause("payment", f"pay-{number}")
        with database.transaction() as tx:
            ledger.deposit(tx, organization_id, 5 * DOLLAR, key=cause.id, cause=cause, note="Paid", now=now)
        with database.transaction() as tx:
            ledger.hold(tx, make_purchase(organization_id, 4 * DOLLAR, job_id=job_id), now=now)
        with database.transaction() as tx:
            ledger.resolve(tx, job_id, 3 * DOLLAR, now=now)
        with database.transaction() as tx:
            ledger.refund(tx, job_id, DOLLAR, key=job_id, reason="ours", now=now)
    database.dispose()
