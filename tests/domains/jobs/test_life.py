"""A seeded walk of users and supervisors over one database, in which the invariants hold."""

from __future__ import annotations

import random

import pytest
import sqlalchemy as sa

from factories import LEASE_S, POLICY, make_inputs, make_principal, make_request
from luthier.billing import audit, ledger
from luthier.errors import ServiceError
from luthier.jobs import progress, queue, service, states
from luthier.jobs.queue import LeaseLost
from luthier.jobs.schemas import Outcome, ProgressUpdate
from luthier.jobs.tables import Event, Job

STEPS = 120
CHECK_EVERY = 5  # each check tries every claim that was ever given


class World:
    """One user, and two supervisors that remember every claim that they were ever given."""

    def __init__(self, database, clock, seed):
        self.database, self.clock, self.random = database, clock, random.Random(seed)
        self.claims = {"supervisor-1": [], "supervisor-2": []}
        with database.transaction() as tx:
            self.principal = make_principal(tx, now=clock.now())
            self.inputs = make_inputs(tx, self.principal, now=clock.now())
        self.jobs = []

    def act(self):
        self.clock.advance(self.random.choice([0, 1, LEASE_S / 2]))
        actions = {self.create: 2, self.cancel: 1, self.claim: 3, self.adopt: 1, self.report: 5, self.settle: 2}
        (action,) = self.random.choices(list(actions), weights=actions.values())
        try:
            with self.database.transaction() as tx:
                action(tx)
        except (LeaseLost, states.IllegalMove, ServiceError):
            pass  # refused: the transaction kept nothing

    def create(self, tx):
        request = make_request(self.inputs, random_seed=len(self.jobs))
        job = service.create(tx, self.principal, request, policy=POLICY, now=self.clock.now(), idempotency_key=None)
        self.jobs.append(job.id)

    def cancel(self, tx):
        if self.jobs:
            service.cancel(tx, self.principal.project_id, self.random.choice(self.jobs), now=self.clock.now())

    def claim(self, tx):
        owner = self.random.choice(list(self.claims))
        claim = queue.claim(tx, owner=owner, lease_s=LEASE_S, now=self.clock.now())
        if claim is not None:
            self.claims[owner].append(claim)

    def adopt(self, tx):
        owner = self.random.choice(list(self.claims))
        self.claims[owner] += queue.adopt(tx, owner=owner, lease_s=LEASE_S, now=self.clock.now())

    def pick(self):
        claims = sorted(
            (claim for claims in self.claims.values() for claim in claims), key=lambda claim: claim.started_at
        )
        return self.random.choice(claims[-5:] or [None])  # of these some are good, and some are lost

    def report(self, tx):
        claim = self.pick()
        if claim is not None:
            update = ProgressUpdate(step=self.random.randrange(11), total_steps=10)
            progress.record(tx, claim.job_id, claim.token, update, now=self.clock.now())
            state = self.random.choice(["compressing", "uploading"])
            event_type = {"compressing": "model_compressing", "uploading": "model_uploading"}[state]
            if (tx.get(Job, claim.job_id).state, state) in states.TABLE:
                progress.move(tx, claim.job_id, claim.token, state, event_type, "x", now=self.clock.now())

    def settle(self, tx):
        claim = self.pick()
        if claim is not None:
            old = tx.get(Job, claim.job_id).state
            likely = [state for state in ("completed", "cancelled") if (old, state) in states.TABLE]
            state = self.random.choice(likely or ["completed", "cancelled", "error", "user_error"])
            progress.settle(tx, claim.job_id, claim.token, Outcome(state=state, message="x"), now=self.clock.now())

    def check_jobs(self):
        with self.database.read() as tx:
            for job in tx.execute(sa.select(Job)).scalars():
                events = tx.execute(sa.select(Event).where(Event.job_id == job.id).order_by(Event.seq)).scalars().all()
                self.check_job(job, events)
            return set(tx.execute(sa.select(Job.state)).scalars())

    def check_job(self, job, events):
        # I8: each move with exactly one event, along the table.
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        state = states.INITIAL
        assert events[0].type == states.INITIAL_EVENT
        for event in events[1:]:
            if event.type == "refund":
                continue  # tells what the next move gives back
            ways = {new for (old, new), type in states.TABLE.items() if old == state and type == event.type}
            assert ways, f"{event.type} tells no move from {state}"
            state = job.state if event is events[-1] and job.state in ways else ways.pop()
        assert state == job.state
        # The price: the quote while it lives, what is charged once it is over, never more.
        assert (job.charged_nanos is not None) == (job.state in states.TERMINAL)
        assert 0 <= (job.charged_nanos or 0) <= job.price_nanos
        assert (job.charged_nanos == job.price_nanos) or job.state != "completed"
        assert not job.charged_nanos or job.state in {"completed", "cancelled"}
        # Given back is what was held and is not charged, told once.
        told = [event.data["refund_nanos"] for event in events if event.type == "refund"]
        back = job.price_nanos - (job.charged_nanos if job.state in states.TERMINAL else job.price_nanos)
        assert told == ([back] if back else [])

    def check_money(self):
        # I1 to I4: the books add up, and a job's hold is open exactly as long as the job lives.
        assert audit.verify(self.database).problems == []
        with self.database.read() as tx:
            for job in tx.execute(sa.select(Job)).scalars():
                hold = ledger.find_hold(tx, job.id)
                assert (hold.captured_nanos is None) == (job.state in states.LIVE)
                assert hold.captured_nanos == job.charged_nanos

    def check_claims(self):
        # I5: of all claims ever given for a job, one is good while the job is leased, and none before and after.
        with self.database.transaction() as tx:
            good = self.list_good_claims(tx)
            leased = tx.execute(sa.select(Job.id).where(Job.state.in_(states.LEASED))).scalars().all()
        assert sorted(good) == sorted(leased)

    def list_good_claims(self, tx):
        good = []
        for claim in (claim for claims in self.claims.values() for claim in claims):
            try:
                queue.require_lease(tx, claim.job_id, claim.token)
            except LeaseLost:
                continue
            good.append(claim.job_id)
        return good


@pytest.mark.parametrize("seed", range(3))
def test_invariants_hold_in_a_random_life(database, clock, seed):
    world = World(database, clock, seed)
    for step in range(STEPS):
        world.act()
        if step % CHECK_EVERY == 0:
            world.check_claims()
    world.check_money()
    seen = world.check_jobs()
    assert len(seen & states.TERMINAL) >= 2, f"seed {seed} walks too little: {seen}"
