"""The first organization's credit: with it a newcomer can begin where nobody takes payments."""

from __future__ import annotations

from datetime import datetime

from luthier.accounts import service as accounts
from luthier.billing import ledger
from luthier.billing.ledger import Cause, EntryView
from luthier.billing.policy import Policy
from luthier.db import Session


def grant_opening_credit(tx: Session, policy: Policy, *, now: datetime) -> EntryView | None:
    """Grant the first organization its opening credit, where no money was ever moved; None where it gets none.

    So it comes at the first start, or at the first one after an upgrade from a version without money.
    """
    if policy.processor != "manual" or not policy.opening_grant_nanos:
        return None
    organization_id = accounts.get_first_organization_id(tx)
    if ledger.list_entries(tx, organization_id, limit=1):
        return None
    amount = policy.format(policy.opening_grant_nanos)
    return ledger.grant(
        tx,
        organization_id,
        policy.opening_grant_nanos,
        key="opening",
        cause=Cause("operator", "first-start"),
        note=f"Granted {amount} of credit at the first start, so that everything can be tried",
        now=now,
    )
