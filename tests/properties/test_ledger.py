"""Whatever is done in whatever order, at whatever time: the books balance, and each account has what is its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from factories import (
    LEASE_S,
    POLICY,
    Inputs,
    give,
    make_counts,
    make_file,
    make_inputs,
    make_model,
    make_principal,
    make_purchase,
    make_request,
    make_tokenization,
)
from luthier.accounts import service as accounts
from luthier.billing import audit, ledger
from luthier.billing.ledger import Cause, Overdrawn
from luthier.db import Database, schema
from luthier.errors import Conflict, InvalidRequest, PaymentRequired, ServiceError, Unprocessable
from luthier.files.tables import File
from luthier.jobs import progress, queue, refunds, service, states
from luthier.jobs.queue import LeaseLost
from luthier.jobs.schemas import Outcome, ProgressUpdate
from luthier.jobs.tables import Job

RUNS = int(os.environ.get("LEDGER_RUNS", "20"))
STEPS = 100  # of a run of each machine
VERIFY_EVERY = 10
NOW = datetime(2026, 1, 31, 23, 30, tzinfo=UTC)
# A clock that goes on, stands still, and is put back: by minutes and by days, over the end of a month.
TIMES = st.one_of(st.integers(-90, 90), st.integers(-7200, 7200)).map(lambda minutes: NOW + timedelta(minutes=minutes))
SKEW = timedelta(hours=1)
AMOUNTS = st.one_of(st.sampled_from([100, 500]), st.integers(1, 1000))
# Few, so that they meet: the same key again for the same transfer, for another amount, kind, cause and job.
KEYS = st.integers(1, 10).map("key-{}".format)
JOBS = st.integers(1, 10).map("ft-{}".format)
NUMBERS = st.integers(0, 50)  # which of what there is


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """A database's file to be copied: making the tables takes longer than most runs."""
    path = tmp_path_factory.mktemp("empty") / "books.db"
    database = Database(f"sqlite:///{path}")
    schema.upgrade(database)
    database.dispose()
    return path


class Machine(RuleBasedStateMachine):
    """A database in memory, where there is such a place: thousands of fsyncs would prove nothing here."""

    empty_database = None

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        path = Path(self.folder.name) / "books.db"
        shutil.copy(self.empty_database, path)
        self.database = Database(f"sqlite:///{path}")
        self.steps = 0

    def teardown(self):
        assert audit.verify(self.database).problems == []
        self.database.dispose()
        self.folder.cleanup()

    def pick(self, things, number):
        things = list(things)
        return things[number % len(things)] if things else None

    @invariant()
    def books_add_up(self):
        self.steps += 1
        if self.steps % VERIFY_EVERY == 0:
            assert audit.verify(self.database).problems == []


@dataclass
class Held:
    """What the model knows of a job: where its money came from, and what of it is charged, each by itself."""

    credit: int
    cash: int
    captured: int | None = None
    credit_charged: int = 0
    cash_charged: int = 0

    @property
    def amount(self):
        return self.credit + self.cash


class Books(Machine):
    """Every operation against a model of plain numbers, in which cash and credit are never mixed."""

    def __init__(self):
        super().__init__()
        with self.database.transaction() as tx:
            self.organization = accounts.create_organization(tx, name="Acme", now=NOW)
        self.cash = self.credit = self.held = self.spent = 0
        self.last_at = None
        self.entries = {}  # by the ledger's own key: what the same transfer again must be
        self.jobs = {}

    def attempt(self, full_key, transfer, operation, *arguments, refusal=None, times, **options):
        """Do it twice, at two times; return whether it is new and moved money. ``refusal`` is for a new key only."""
        known = self.entries.get(full_key)
        if known is not None:
            refusal = None if known == transfer else Conflict
        if refusal is not None:
            with pytest.raises(refusal), self.database.transaction() as tx:
                operation(tx, *arguments, now=times[0], **options)
            return False
        results = []
        for now in times:
            with self.database.transaction() as tx:
                results.append(operation(tx, *arguments, now=now, **options))
        assert results[0] == results[1]
        if known is None:
            self.check_date(results[0].created_at, times[0])
        self.entries[full_key] = transfer
        return known is None

    def check_date(self, dated, now):
        """By the clock, but not before the entry ahead of it because the clock was put back a little."""
        is_put_back = self.last_at is not None and now < self.last_at <= now + SKEW
        assert dated == (self.last_at if is_put_back else now)
        self.last_at = dated

    def transfer(self, operation, kind, nanos, key, cause, times):
        return self.attempt(
            f"{kind}:{key}", (nanos, cause), operation, self.organization, nanos,
            key=key, cause=Cause("payment", cause), note="x", times=times,
        )  # fmt: skip

    @rule(nanos=AMOUNTS, key=KEYS, cause=st.sampled_from(["p", "q"]), times=st.tuples(TIMES, TIMES))
    def deposit(self, nanos, key, cause, times):
        if self.transfer(ledger.deposit, "deposit", nanos, key, cause, times):
            self.cash += nanos

    @rule(nanos=AMOUNTS, key=KEYS, cause=st.sampled_from(["p", "q"]), times=st.tuples(TIMES, TIMES))
    def grant(self, nanos, key, cause, times):
        if self.transfer(ledger.grant, "grant", nanos, key, cause, times):
            self.credit += nanos

    @rule(nanos=st.integers(1, 300), key=KEYS, cause=st.sampled_from(["p", "q"]), times=st.tuples(TIMES, TIMES))
    def withdraw(self, nanos, key, cause, times):
        if self.transfer(ledger.withdraw, "withdraw", nanos, key, cause, times):
            self.cash -= nanos

    @rule(nanos=st.integers(-300, 1000).filter(bool), key=KEYS, times=st.tuples(TIMES, TIMES))
    def adjust(self, nanos, key, times):
        if self.transfer(ledger.adjust, "adjust", nanos, key, "p", times):
            self.cash += nanos

    @rule(
        nanos=st.one_of(st.integers(0, 1000), st.sampled_from(["all there is", "one more"])),
        job_id=JOBS,
        overdraft=st.sampled_from([0, 0, 100]),
        times=st.tuples(TIMES, TIMES),
    )
    def hold(self, nanos, job_id, overdraft, times):
        if isinstance(nanos, str):
            nanos = max(0, self.cash + self.credit + overdraft + (nanos == "one more"))
        purchase = make_purchase(self.organization, nanos, job_id=job_id)
        is_covered = nanos <= self.cash + self.credit + overdraft
        refusal = None if is_covered else Overdrawn
        is_new = self.attempt(
            f"hold:{job_id}", nanos, ledger.hold, purchase, overdraft_nanos=overdraft, refusal=refusal, times=times
        )
        if is_new:
            held = self.jobs[job_id] = Held(credit=min(nanos, self.credit), cash=nanos - min(nanos, self.credit))
            self.credit -= held.credit
            self.cash -= held.cash
            self.held += nanos

    @rule(number=NUMBERS, share=st.sampled_from([0, 30, 60, 90, 100, 110]), times=st.tuples(TIMES, TIMES))
    def resolve(self, number, share, times):
        job_id = self.pick(self.jobs, number)
        if job_id is None:
            return
        held = self.jobs[job_id]
        captured = held.amount * share // 100
        refusal = InvalidRequest if captured > held.amount else None
        if self.attempt(f"resolve:{job_id}", captured, ledger.resolve, job_id, captured, refusal=refusal, times=times):
            held.captured = captured
            held.credit_charged = min(captured, held.credit)
            held.cash_charged = captured - held.credit_charged
            self.held -= held.amount
            self.spent += captured
            self.credit += held.credit - held.credit_charged
            self.cash += held.cash - held.cash_charged

    @rule(
        number=NUMBERS,
        nanos=st.sampled_from([1, 20, 100, "all that is left", "one more"]),
        key=KEYS,
        times=st.tuples(TIMES, TIMES),
    )
    def refund(self, number, nanos, key, times):
        job_id = self.pick(self.jobs, number)
        if job_id is None:
            return
        held = self.jobs[job_id]
        if isinstance(nanos, str):
            nanos = max(1, held.cash_charged + held.credit_charged + (nanos == "one more"))
        refusal = InvalidRequest if nanos > held.cash_charged + held.credit_charged else None
        if self.attempt(
            f"refund:{key}", (nanos, job_id), ledger.refund, job_id, nanos,
            key=key, reason="x", refusal=refusal, times=times,
        ):  # fmt: skip
            to_cash = min(nanos, held.cash_charged)  # what was the organization's own comes back first
            held.cash_charged -= to_cash
            held.credit_charged -= nanos - to_cash
            self.spent -= nanos
            self.cash += to_cash
            self.credit += nanos - to_cash

    @invariant()
    def accounts_are_what_the_model_says(self):
        with self.database.read() as tx:
            balance = ledger.get_balance(tx, self.organization)
            assert balance == ledger.Balance(self.cash, self.credit, self.held, self.spent)
            assert len(ledger.list_entries(tx, self.organization)) == len(self.entries)

    @invariant()
    def holds_are_what_the_model_says(self):
        with self.database.read() as tx:
            for job_id, held in self.jobs.items():
                found = ledger.find_hold(tx, job_id)
                assert (found.amount_nanos, found.captured_nanos) == (held.amount, held.captured)
                assert found.charged_nanos == held.cash_charged + held.credit_charged


DOLLAR = 1_000_000_000
TOKENS = 10_000_000  # of one epoch: $4.80
STEPS_A_JOB = 10


class Jobs(Machine):
    """Users, supervisors and an operator over the jobs of one organization, which has too little for all of them."""

    def __init__(self):
        super().__init__()
        self.given = 30 * DOLLAR
        with self.database.transaction() as tx:
            self.who = make_principal(tx, now=NOW, dollars=30)
            self.inputs = make_inputs(tx, self.who, now=NOW, tokens=TOKENS, validation_tokens=TOKENS // 10)
        self.quotes = {}  # of the jobs that were priced at their create
        self.uncounted = {}  # files of jobs that wait for their price
        self.claims = []
        self.refunded = 0

    def act(self, operation, *arguments, **options):
        """Do it in a transaction; return None when it was refused, which must have kept nothing."""
        try:
            with self.database.transaction() as tx:
                return operation(tx, *arguments, **options)
        except (LeaseLost, states.IllegalMove, ServiceError):
            return None

    @rule(number=NUMBERS, n_epochs=st.integers(1, 2), n_evals=st.integers(0, 2), now=TIMES)
    def create(self, number, n_epochs, n_evals, now):
        request = make_request(self.inputs, random_seed=number, n_epochs=n_epochs, n_evals=n_evals)
        with self.database.transaction() as tx:
            quote = service.estimate(tx, self.who, request, policy=POLICY, now=now).quote
            available = ledger.get_balance(tx, self.who.organization_id).available_nanos
        is_covered = available >= max(quote.price_nanos, POLICY.minimum_nanos)
        try:
            with self.database.transaction() as tx:
                job = service.create(tx, self.who, request, policy=POLICY, now=now, idempotency_key=f"key-{number}")
        except PaymentRequired:
            assert not is_covered
        except Unprocessable:
            pass  # the key is another create's
        else:
            assert is_covered or job.id in self.quotes  # the same create again is the first job
            self.quotes.setdefault(job.id, quote.price_nanos)

    @rule(now=TIMES)
    def create_before_its_price_is_known(self, now):
        with self.database.transaction() as tx:
            file_id = make_file(tx, self.who, now=now, status="QUEUED")
        request = make_request(Inputs(make_model_name(self.database, now), file_id))
        job = self.act(service.create, self.who, request, policy=POLICY, now=now, idempotency_key=None)
        if job is not None:
            self.uncounted[job.id] = file_id

    @rule(number=NUMBERS, now=TIMES)
    def count(self, number, now):
        job_id = self.pick(self.uncounted, number)
        if job_id is None:
            return
        file_id = self.uncounted.pop(job_id)
        with self.database.transaction() as tx:
            file = tx.get(File, file_id)
            file.processing_status, file.line_count = "COMPLETED", 10
            tx.flush()
            make_tokenization(tx, self.who, file_id, now=now, counts=make_counts(tokens=TOKENS))
            service.advance_pending(tx, job_id, policy=POLICY, now=now)

    @rule(number=NUMBERS, now=TIMES)
    def cancel(self, number, now):
        job_id = self.pick([*self.quotes, *self.uncounted], number)
        if job_id is not None:
            self.act(service.cancel, self.who.project_id, job_id, now=now)

    @rule(now=TIMES)
    def claim(self, now):
        claim = self.act(queue.claim, owner="one", lease_s=LEASE_S, now=now)
        self.claims += [claim] if claim is not None else []

    @rule(now=TIMES)
    def adopt(self, now):
        self.claims += self.act(queue.adopt, owner="two", lease_s=LEASE_S, now=now)

    @rule(number=NUMBERS, step=st.integers(0, STEPS_A_JOB), now=TIMES)
    def report(self, number, step, now):
        claim = self.pick(self.claims[-6:], number)  # of these some are good, and some are lost
        if claim is not None:
            update = ProgressUpdate(step=step, total_steps=STEPS_A_JOB)
            self.act(progress.record, claim.job_id, claim.token, update, now=now)

    @rule(number=NUMBERS, now=TIMES)
    def finish_training(self, number, now):
        claim = self.pick(self.claims[-6:], number)
        if claim is not None:
            for state, told in (("compressing", "model_compressing"), ("uploading", "model_uploading")):
                self.act(move_if_legal, claim, state, told, now=now)

    @rule(number=NUMBERS, state=st.sampled_from(sorted(states.TERMINAL)), now=TIMES)
    def settle(self, number, state, now):
        claim = self.pick(self.claims[-6:], number)
        if claim is not None:
            outcome = Outcome(state=state, message=None if state in {"completed", "cancelled"} else "it broke")
            self.act(progress.settle, claim.job_id, claim.token, outcome, now=now)

    @rule(now=TIMES)
    def train_to_the_end(self, now):
        claim = self.act(queue.claim, owner="one", lease_s=LEASE_S, now=now)
        if claim is not None:
            for state, told in (("compressing", "model_compressing"), ("uploading", "model_uploading")):
                self.act(move_if_legal, claim, state, told, now=now)
            self.act(progress.settle, claim.job_id, claim.token, Outcome(state="completed"), now=now)

    @rule(number=NUMBERS, nanos=st.sampled_from([None, 1, DOLLAR]), key=KEYS, now=TIMES)
    def refund(self, number, nanos, key, now):
        job_id = self.pick(self.quotes, number)
        with self.database.read() as tx:
            is_new = ledger.find_entry(tx, self.who.organization_id, "refund", key) is None
        if job_id is not None:
            entry = self.act(refunds.refund, job_id, nanos, key=key, reason="x", now=now)
            self.refunded += -entry.amounts["spent"] if entry is not None and is_new else 0

    @rule(dollars=st.integers(1, 5), now=TIMES)
    def give(self, dollars, now):
        self.given += dollars * DOLLAR
        self.act(give, self.who.organization_id, dollars * DOLLAR, now=now)

    @invariant()
    def money_is_neither_made_nor_lost(self):
        """I1, I2: what was given is available, held or spent; what is available is never below zero."""
        with self.database.read() as tx:
            balance = ledger.get_balance(tx, self.who.organization_id)
        assert balance.available_nanos + balance.held_nanos + balance.spent_nanos == self.given
        assert min(balance.available_nanos, balance.held_nanos, balance.spent_nanos) >= 0

    @invariant()
    def job_is_over_exactly_when_its_hold_is_resolved(self):
        """I3, I4, I14: and what is captured of it is what the job was quoted, or less where it did not run to its end."""
        held = charged = 0
        with self.database.read() as tx:
            balance = ledger.get_balance(tx, self.who.organization_id)
            for job in tx.query(Job):
                hold = ledger.find_hold(tx, job.id)
                if hold is None:
                    assert job.state in {"pending", "cancelled"}
                    assert not job.charged_nanos
                    continue
                is_over = job.state in states.TERMINAL
                assert (hold.captured_nanos is not None) == (hold.resolved_at is not None) == is_over
                assert hold.captured_nanos == job.charged_nanos
                assert hold.amount_nanos == self.quotes.get(job.id, job.price_nanos)
                if is_over:
                    assert hold.captured_nanos in get_possible_charges(job, hold)
                    charged += hold.captured_nanos
                else:
                    held += hold.amount_nanos
        assert (balance.held_nanos, balance.spent_nanos) == (held, charged - self.refunded)


def make_model_name(database, now):
    with database.transaction() as tx:
        return make_model(tx, now=now)


def move_if_legal(tx, claim, state, told, *, now):
    if (tx.get(Job, claim.job_id).state, state) in states.TABLE:
        progress.move(tx, claim.job_id, claim.token, state, told, "x", now=now)


def get_possible_charges(job, hold):
    match job.state:
        case "completed":
            return {hold.amount_nanos}
        case "cancelled":
            return range(hold.amount_nanos + 1)
        case _:
            return {0}


def run(machine, empty_database):
    machine.empty_database = empty_database
    run_state_machine_as_test(machine, settings=settings(max_examples=RUNS, stateful_step_count=STEPS, deadline=None))


def test_books_add_up_after_any_operations(empty_database):
    """2,000 steps, each operation twice; LEDGER_RUNS=100 makes it 10,000."""
    run(Books, empty_database)


def test_jobs_and_their_money_end_together_after_any_life(empty_database):
    """2,000 steps; LEDGER_RUNS=100 makes it 10,000."""
    run(Jobs, empty_database)
