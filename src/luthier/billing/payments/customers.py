"""An organization as the processor knows it: made when its first card is to be saved."""

from __future__ import annotations

from datetime import datetime

from luthier.billing.payments import queries
from luthier.billing.payments.processor import Processor
from luthier.db import Database


def ensure_customer(database: Database, processor: Processor, organization_id: str, *, now: datetime) -> str:
    """Return the processor's name of an organization, made known to it before if need be.

    Two at once, or one whose answer was lost, make the same: the processor knows the organization's id. Raises
    ProcessorUnreachable.
    """
    with database.read() as tx:
        row = queries.find_customer(tx, organization_id)
    if row is not None and row.ref is not None:
        return row.ref
    with database.transaction() as tx:
        queries.ensure_customer(tx, organization_id, now=now)
    made = processor.create_customer(organization_id)
    with database.transaction() as tx:
        queries.set_customer_ref(tx, organization_id, made)
        row = queries.find_customer(tx, organization_id)
    assert row is not None, f"the customer of {organization_id} is there and is not"
    assert row.ref is not None, f"the customer of {organization_id} has no reference"
    return row.ref
