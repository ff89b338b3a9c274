"""Statements handed to the driver: the same values, rows and exceptions as SQLAlchemy's own way."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from luthier.billing.tables import LedgerAudit
from luthier.db.prepared import Prepared

AUDITS = LedgerAudit.__table__
INSERT = Prepared(sa.insert(AUDITS))
SELECT = Prepared(
    sa.select(AUDITS.c.audited_at, AUDITS.c.problems).where(
        AUDITS.c.audited_at == sa.bindparam("at", type_=AUDITS.c.audited_at.type)
    ),
    [AUDITS.c.audited_at, AUDITS.c.problems],
)


def insert(tx, moment):
    INSERT.run(tx.connection(), {"audited_at": moment, "entries": 7, "problems": ["one", "two"]})


def test_values_and_columns_are_converted_by_their_types(database, clock):
    with database.transaction() as tx:
        insert(tx, clock.now())
        assert SELECT.find_row(tx.connection(), {"at": clock.now()}) == (clock.now(), ["one", "two"])
    with database.read() as tx:
        (row,) = tx.execute(sa.select(LedgerAudit)).scalars()
    assert (row.audited_at, row.entries, row.problems) == (clock.now(), 7, ["one", "two"])


def test_row_that_is_not_there_is_none(database, clock):
    with database.read() as tx:
        assert SELECT.find_row(tx.connection(), {"at": clock.now()}) is None


def test_error_of_the_driver_is_sqlalchemys_and_the_transaction_keeps_nothing(database, clock):
    with pytest.raises(IntegrityError), database.transaction() as tx:
        insert(tx, clock.now())
        insert(tx, clock.now())
    with database.read() as tx:
        assert SELECT.find_row(tx.connection(), {"at": clock.now()}) is None
