"""The first organization's credit: with it a newcomer can begin where nobody takes payments."""

from __future__ import annotations

from datetime import datetime

from luthier.accounts import service as accounts
from luthier.billing import ledger
from luthier.billing.ledger import Cause, EntryView
from luthier.billing.policy import Policy
from luthier.db import Session


def grant_opening_credit(tx: Session, policy: Policy, *, now: datetime) -> EntryView | None:
    """Grant the first organization its opening credit, once and for good; None where payments are not manual."""
    if policy.processor != "manual" or not policy.opening_grant_nanos:
        return None
    organization_id = accounts.get_first_organization_id(tx)
    if (existing := ledger.find_entry(tx, organization_id, "grant", "opening")) is not None:
        return existing  # of another amount, it may be: the setting has changed since
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
