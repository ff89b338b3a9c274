"""Leases: renewed whatever the loop does, tried again when that fails, and let go when they must be."""

from __future__ import annotations

import contextlib
import os

import pytest

import factories
from luthier.db import Database
from luthier.jobs import queue
from luthier.jobs.tables import Job
from luthier.protocol import layout
from luthier.settings import Settings
from luthier.supervisor.leases import Leases
from luthier.supervisor.site import Site
from supervision import wait_until

LEASE_S = 30.0
LONG_AGO = 1_000_000_000.0


class DownDatabase(Database):
    """A database that can be out of reach."""

    is_down = False

    @contextlib.contextmanager
    def transaction(self):
        if self.is_down:
            raise OSError("the connection was refused")
        with super().transaction() as tx:
            yield tx


class Desk:
    """One running job and its lease."""

    def __init__(self, home, database, clock) -> None:
        self.clock = clock
        self.database = DownDatabase(database.url)
        settings = Settings(home=home, lease_s=LEASE_S)
        with self.database.transaction() as tx:
            principal = factories.make_principal(tx, now=clock.now())
            factories.make_job(tx, principal, now=clock.now())
            self.claim = queue.claim(tx, owner="me", lease_s=LEASE_S, now=clock.now())
        self.file = settings.runs_dir / self.claim.job_id / layout.LEASE
        self.file.parent.mkdir(parents=True)
        self.file.touch()
        self.site = Site(settings, self.database, None, clock, None, None, 600.0, factories.POLICY)
        self.leases = Leases(self.site)
        self.leases.keep(self.claim)

    def age_file(self) -> None:
        os.utime(self.file, (LONG_AGO, LONG_AGO))

    def is_file_renewed(self) -> bool:
        return self.file.stat().st_mtime > LONG_AGO

    def get_time_left_s(self) -> float:
        with self.database.read() as tx:
            return (tx.get(Job, self.claim.job_id).lease_expires_at - self.clock.now()).total_seconds()


@pytest.fixture
def desk(home, database, clock):
    desk = Desk(home, database, clock)
    yield desk
    desk.database.dispose()


def test_lease_when_kept_is_renewed_without_any_tick(desk):
    desk.clock.advance(20)
    desk.age_file()
    desk.leases.start()
    wait_until(lambda: desk.get_time_left_s() == LEASE_S and desk.is_file_renewed(), what="the lease is renewed")
    desk.leases.stop()


def test_renewal_when_it_fails_is_tried_again_soon(desk):
    assert desk.leases.renew() == LEASE_S / 3
    desk.clock.advance(20)
    desk.database.is_down = True
    assert desk.leases.renew() <= LEASE_S / 30
    desk.database.is_down = False
    assert desk.leases.renew() == LEASE_S / 3
    assert desk.get_time_left_s() == LEASE_S


def test_worker_when_the_database_is_out_of_reach_is_kept_alive_only_where_nobody_else_can_take_the_job(desk):
    desk.age_file()
    desk.database.is_down = True
    desk.leases.renew()
    assert desk.is_file_renewed() == desk.database.is_sqlite


def test_lease_when_another_has_it_is_let_go(desk):
    desk.age_file()
    desk.clock.advance(40)
    with desk.database.transaction() as tx:
        queue.adopt(tx, owner="another", lease_s=LEASE_S, now=desk.clock.now())
    desk.clock.advance(20)
    desk.leases.renew()
    assert not desk.is_file_renewed()
    assert desk.get_time_left_s() == 10


def test_lease_when_dropped_is_renewed_no_more(desk):
    desk.age_file()
    desk.leases.drop(desk.claim.job_id)
    desk.leases.renew()
    assert not desk.is_file_renewed()


def test_lease_when_the_loop_is_stuck_runs_out(desk):
    stuck = Leases(desk.site, stuck_s=0.0)
    stuck.keep(desk.claim)
    desk.age_file()
    desk.clock.advance(20)
    stuck.renew()
    assert not desk.is_file_renewed()
    assert desk.get_time_left_s() == 10
