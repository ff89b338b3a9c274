from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from luthier.accounts.tables import Organization


def make_organization(id: str) -> Organization:
    return Organization(id=id, name="Acme", created_at=datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC))


def test_transaction_when_body_raises_keeps_nothing(database):
    with pytest.raises(RuntimeError, match="boom"), database.transaction() as tx:
        tx.add(make_organization("org-1"))
        tx.flush()
        raise RuntimeError("boom")
    with database.read() as tx:
        assert tx.get(Organization, "org-1") is None


def test_time_when_stored_comes_back_aware_to_the_microsecond(database):
    with database.transaction() as tx:
        tx.add(make_organization("org-1"))
    with database.read() as tx:
        row = tx.get(Organization, "org-1")
    assert row.created_at == datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)
    assert row.created_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_time_when_utc_has_no_name_for_it_is_never_stored(database, text):
    row = make_organization("org-1")
    row.created_at = datetime.fromisoformat(text)
    with pytest.raises(sa.exc.StatementError, match="UTC"), database.transaction() as tx:
        tx.add(row)
    with database.read() as tx:
        assert tx.get(Organization, "org-1") is None


def test_read_when_written_to_keeps_nothing(database):
    with database.transaction() as tx:
        tx.add(make_organization("org-1"))
    try:
        with database.read() as tx:
            tx.execute(sa.delete(Organization))
    except sa.exc.InternalError:
        assert not database.is_sqlite  # PostgreSQL refuses the write outright
    with database.read() as tx:
        assert tx.get(Organization, "org-1") is not None


def test_transactions_from_many_threads_lose_no_update(database):
    with database.transaction() as tx:
        tx.add(make_organization("org-1"))
        tx.execute(sa.update(Organization).values(name="0"))

    def add_one_twenty_times() -> None:
        for _ in range(20):
            with database.transaction() as tx:
                row = tx.execute(sa.select(Organization).with_for_update()).scalar_one()
                row.name = str(int(row.name) + 1)

    threads = [threading.Thread(target=add_one_twenty_times) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as tx:
        assert tx.get(Organization, "org-1").name == "160"
