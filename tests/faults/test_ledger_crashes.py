"""A process that dies at any point of a transfer, and does everything once more: nobody is charged twice or not at all."""

from __future__ import annotations

import pytest

from factories import make_principal
from luthier import faults
from luthier.billing import audit, ledger
from luthier.billing.ledger import Balance
from transfers import DOLLAR, JOBS, run

POINTS = {
    "hold.before_commit": JOBS,
    "resolve.before_commit": JOBS,
    "refund.before_commit": JOBS,
    "transaction.before_commit": 4 * JOBS,
    "transaction.after_commit": 4 * JOBS,
}


@pytest.mark.parametrize(("point", "nth"), [(point, n + 1) for point, count in POINTS.items() for n in range(count)])
def test_transfers_when_the_process_dies_at_fault_point_and_repeats_them_are_made_once(database, clock, point, nth):
    with database.transaction() as tx:
        organization_id = make_principal(tx, now=clock.now(), dollars=0).organization_id
    assert run(database, organization_id, f"{point}:{nth}") == faults.EXIT_CODE
    assert audit.verify(database).problems == []  # whole after the crash, before anything is repeated
    assert run(database, organization_id) == 0
    with database.read() as tx:
        assert ledger.get_balance(tx, organization_id) == Balance(JOBS * 3 * DOLLAR, 0, 0, JOBS * 2 * DOLLAR)
        assert len(ledger.list_entries(tx, organization_id)) == 4 * JOBS
    assert audit.verify(database).problems == []
