from __future__ import annotations

import pytest

import factories


@pytest.fixture
def project_id(database, clock) -> str:
    with database.transaction() as tx:
        return factories.make_principal(tx, now=clock.now()).project_id


@pytest.fixture
def other_project_id(database, clock) -> str:
    with database.transaction() as tx:
        return factories.make_principal(tx, now=clock.now()).project_id
