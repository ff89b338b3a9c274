"""The supervisor and the books: jobs that are no longer covered end, and an altered ledger is found within a day."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from luthier.billing import audit, ledger, limits
from luthier.supervisor.books import Books
from supervision import wait_until


@pytest.fixture
def books(workshop):
    supervisor = workshop.make_supervisor()
    yield Books(supervisor._site)
    supervisor.close()


def test_supervisor_ends_the_job_that_a_lowered_limit_no_longer_covers(workshops):
    workshop = workshops(limit_grace_s=0, slots=1)
    first, second = workshop.make_job(), workshop.make_job()
    with workshop.database.transaction() as tx:
        price = ledger.find_hold(tx, first).amount_nanos
        limits.set_limit(
            tx,
            workshop.principal.organization_id,
            "key",
            workshop.principal.api_key_id,
            price,
            now=workshop.clock.now(),
        )
    workshop.start_supervisor()
    workshop.wait_for_state(second, "cancelled")
    workshop.wait_for_state(first, "completed")
    assert [event.type for event in workshop.list_events(second)][-3:] == ["billing_limit", "refund", "job_stopped"]
    workshop.assert_paid(first)
    workshop.assert_paid(second)


def test_daily_verification_finds_what_was_altered_and_keeps_it(workshop, books, clock):
    workshop.make_job()
    books.verify()
    with workshop.database.transaction() as tx:
        first = audit.find_last(tx)
        assert (first.entries, first.problems) == (2, [])
        tx.execute(sa.text("UPDATE ledger_accounts SET cash_nanos = cash_nanos + 1"))
    books.verify()  # a day has not passed
    with workshop.database.transaction() as tx:
        assert audit.find_last(tx) == first
        tx.execute(sa.text("UPDATE ledger_audits SET audited_at = audited_at - 86400000000"))
    books.verify()
    with workshop.database.read() as tx:
        (problem,) = audit.find_last(tx).problems
    assert "cash is kept as" in problem


def test_books_when_ticked_do_their_work_in_the_background(workshop, books):
    books.tick()
    with workshop.database.read() as tx:
        assert audit.find_last(tx) is None or audit.find_last(tx).problems == []

    def find():
        books.tick()
        with workshop.database.read() as tx:
            return audit.find_last(tx)

    assert wait_until(find, what="a verification").entries >= 1
