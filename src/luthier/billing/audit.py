"""Whether the books are as they were written: every hash, every sum and every hold, computed anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from luthier.billing import queries
from luthier.billing.ledger import GENESIS, OWN_ACCOUNTS, Account, describe_hold, hash_entry
from luthier.billing.money import format_money
from luthier.billing.queries import AccountRow
from luthier.db import Database, Session

PROGRESS_EVERY = 10_000  # entries
EVERY = timedelta(days=1)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Problem:
    """Something in the books that does not add up; ``seq`` is the first entry at fault, None for the whole account."""

    organization_id: str
    seq: int | None
    message: str


@dataclass(frozen=True)
class Audit:
    """What ``verify`` has looked at, and what it found: at most one problem an organization, the first."""

    organizations: int
    entries: int
    problems: list[Problem]
    heads: dict[
        str, str
    ]  # the last hash of each organization: kept elsewhere, it shows when a whole chain is written anew


@dataclass(frozen=True)
class AuditView:
    """The last time that the books were verified by themselves."""

    audited_at: datetime
    entries: int
    problems: list[str]


def is_due(tx: Session, *, now: datetime) -> bool:
    """Tell whether the last verification is a day ago; one from the future, by a wrong clock, does not count."""
    last = find_last(tx)
    return last is None or not timedelta(0) <= now - last.audited_at < EVERY


def find_last(tx: Session) -> AuditView | None:
    """Return what the last verification found; None before the first."""
    row = queries.find_last_audit(tx)
    return None if row is None else AuditView(row.audited_at, row.entries, row.problems)


def record(tx: Session, result: Audit, *, now: datetime) -> None:
    """Keep what a verification found."""
    problems = [f"{problem.organization_id}: {problem.message}" for problem in result.problems]
    queries.insert_audit(tx, audited_at=now, entries=result.entries, problems=problems)


def verify(database: Database, *, on_progress: Progress = lambda _count: None) -> Audit:
    """Recompute everything, as the database is at one moment; ``on_progress`` is told how many entries were looked at."""
    with database.read() as tx:
        accounts = queries.list_accounts(tx)
        auditor = _Auditor(tx, on_progress)
        found = (auditor.examine(account) for account in accounts)
        problems = [problem for problem in found if problem is not None]
        known = {account.organization_id for account in accounts}
        problems += [
            Problem(one, None, "there are entries of an organization that has no accounts")
            for one in queries.list_organizations_with_entries(tx)
            if one not in known
        ]
        heads = {account.organization_id: account.last_hash for account in accounts}
    return Audit(len(accounts), auditor.looked_at, problems, heads)


class _Auditor:
    def __init__(self, tx: Session, on_progress: Progress) -> None:
        self._tx = tx
        self._on_progress = on_progress
        self.looked_at = 0

    def examine(self, account: AccountRow) -> Problem | None:
        """Return the first problem of an organization's books."""
        totals = dict.fromkeys(OWN_ACCOUNTS, 0)
        return (
            self._follow_chain(account, totals) or self._compare_sums(account, totals) or self._compare_holds(account)
        )

    def _follow_chain(self, account: AccountRow, totals: dict[Account, int]) -> Problem | None:
        """Follow the entries and add them up in ``totals``; stop at the first that is not as it was written."""
        organization_id = account.organization_id
        seq, previous = 0, GENESIS
        for entry in queries.stream_entries(self._tx, organization_id):
            seq += 1
            if entry["seq"] != seq:
                return Problem(organization_id, seq, f"entry {seq} is missing")
            if entry["previous_hash"] != previous or hash_entry(entry) != entry["hash"]:
                return Problem(organization_id, seq, f"entry {seq} was altered: its hash does not fit")
            for name in OWN_ACCOUNTS:
                totals[name] += entry[f"{name}_nanos"]
            previous = entry["hash"]
            self.looked_at += 1
            if self.looked_at % PROGRESS_EVERY == 0:
                self._on_progress(self.looked_at)
        if seq < account.last_seq:
            return Problem(organization_id, seq + 1, f"entry {seq + 1} is missing: there were {account.last_seq}")
        if seq > account.last_seq or previous != account.last_hash:
            return Problem(organization_id, seq, f"entry {seq} was added by another hand: the accounts do not know it")
        return None

    def _compare_sums(self, account: AccountRow, totals: dict[Account, int]) -> Problem | None:
        organization_id = account.organization_id
        for name in OWN_ACCOUNTS:
            if totals[name] != (kept := getattr(account, f"{name}_nanos")):
                message = f"{name} is kept as {format_money(kept)}, its entries sum to {format_money(totals[name])}"
                return Problem(organization_id, None, message)
        open_nanos = queries.sum_open_holds(self._tx, organization_id)
        if open_nanos != account.held_nanos:
            held, summed = format_money(account.held_nanos), format_money(open_nanos)
            return Problem(organization_id, None, f"{held} is held, the open holds sum to {summed}")
        return None

    def _compare_holds(self, account: AccountRow) -> Problem | None:
        """Compare each job's hold with what its entries say: there is one, its amounts and times, what was bought."""
        organization_id = account.organization_id
        job_id = queries.find_job_without_hold(self._tx, organization_id)
        if job_id is not None:
            return Problem(organization_id, None, f"the hold of job {job_id} is missing: its entries are there")
        job_id = queries.find_hold_without_entries(self._tx, organization_id) or self._find_altered_purchase(account)
        if job_id is None:
            return None
        message = f"the hold of job {job_id} was altered: it is not what its entries say"
        return Problem(organization_id, None, message)

    def _find_altered_purchase(self, account: AccountRow) -> str | None:
        """Return a job whose hold is for something else than the note of its entry says."""
        for bought, nanos, note in queries.stream_holds(self._tx, account.organization_id):
            if describe_hold(bought, nanos) != note:
                return bought.job_id
        return None
