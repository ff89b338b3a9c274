"""Whatever is done in whatever order: the books balance, and nothing is held that is not there."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from factories import make_purchase
from luthier.accounts import service as accounts
from luthier.billing import audit, ledger
from luthier.billing.ledger import Cause, Overdrawn
from luthier.db import Database, schema
from luthier.errors import Conflict, InvalidRequest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AMOUNTS = st.integers(1, 1000)


class Books(RuleBasedStateMachine):
    """Every operation against a model that is a handful of numbers."""

    holds = Bundle("holds")
    charged = Bundle("charged")

    def __init__(self):
        super().__init__()
        # In memory where there is such a place: thousands of fsyncs would prove nothing here.
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.database = Database(f"sqlite:///{Path(self.folder.name) / 'books.db'}")
        schema.upgrade(self.database)
        with self.database.transaction() as tx:
            self.organization = accounts.create_organization(tx, name="Acme", now=NOW)
        self.number = 0
        self.available = self.held = self.spent = 0
        self.open = {}
        self.refundable = {}

    def teardown(self):
        self.database.dispose()
        self.folder.cleanup()

    def name(self):
        self.number += 1
        return f"n{self.number}"

    def run(self, operation, *arguments, **options):
        """Run it twice: the second time has no effect."""
        results = []
        for _ in range(2):
            with self.database.transaction() as tx:
                results.append(operation(tx, *arguments, now=NOW, **options))
        assert results[0] == results[1]

    @rule(nanos=AMOUNTS, operation=st.sampled_from([ledger.deposit, ledger.grant]))
    def give(self, nanos, operation):
        self.run(operation, self.organization, nanos, key=self.name(), cause=Cause("operator", "x"), note="x")
        self.available += nanos

    @rule(nanos=AMOUNTS)
    def withdraw(self, nanos):
        self.run(ledger.withdraw, self.organization, nanos, key=self.name(), cause=Cause("payment", "x"), note="x")
        self.available -= nanos

    @rule(nanos=st.integers(-1000, 1000).filter(bool))
    def adjust(self, nanos):
        self.run(ledger.adjust, self.organization, nanos, key=self.name(), cause=Cause("operator", "x"), note="x")
        self.available += nanos

    @rule(target=holds, nanos=st.integers(0, 1000))
    def hold(self, nanos):
        job_id = self.name()
        purchase = make_purchase(self.organization, nanos, job_id=job_id)
        if nanos > self.available:
            with pytest.raises(Overdrawn), self.database.transaction() as tx:
                ledger.hold(tx, purchase, now=NOW)
            return None
        self.run(ledger.hold, purchase)
        self.available -= nanos
        self.held += nanos
        self.open[job_id] = nanos
        return job_id

    @rule(target=charged, job_id=consumes(holds), share=st.floats(0, 1), other=st.integers(0, 1000))
    def resolve(self, job_id, share, other):
        if job_id is None:
            return None
        amount = self.open.pop(job_id)
        captured = int(amount * share)
        self.run(ledger.resolve, job_id, captured)
        if other != captured:
            with pytest.raises(Conflict), self.database.transaction() as tx:
                ledger.resolve(tx, job_id, other, now=NOW)
        self.held -= amount
        self.spent += captured
        self.available += amount - captured
        self.refundable[job_id] = captured
        return job_id

    @rule(job_id=charged, nanos=AMOUNTS)
    def refund(self, job_id, nanos):
        if job_id is None:
            return
        key = self.name()
        if nanos > self.refundable[job_id]:
            with pytest.raises(InvalidRequest), self.database.transaction() as tx:
                ledger.refund(tx, job_id, nanos, key=key, reason="x", now=NOW)
            return
        self.run(ledger.refund, job_id, nanos, key=key, reason="x")
        self.refundable[job_id] -= nanos
        self.spent -= nanos
        self.available += nanos

    @invariant()
    def balance_is_what_the_model_says(self):
        with self.database.read() as tx:
            balance = ledger.get_balance(tx, self.organization)
        assert (balance.available_nanos, balance.held_nanos, balance.spent_nanos) == (
            self.available,
            self.held,
            self.spent,
        )

    @invariant()
    def books_add_up(self):
        if self.number % 10 == 0:
            assert audit.verify(self.database).problems == []


def test_books_add_up_after_any_operations():
    """2,000 steps, each operation twice; LEDGER_RUNS=50 makes it 10,000, in a minute and a half."""
    run_state_machine_as_test(
        Books, settings=settings(max_examples=int(os.environ.get("LEDGER_RUNS", "10")), stateful_step_count=200)
    )
