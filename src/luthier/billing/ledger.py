"""The ledger: the only code that moves money.

Double entry, immutable, in nano-dollars. An organization has cash, promotional credit, what is held for its jobs and
what it has spent; the platform has payments (money from outside) and adjustments (money that an operator gave), and its
revenue is what the organizations have spent: one account, seen from two sides. Every entry moves money between these
accounts, names its cause and says in a sentence what happened. Entries of an organization form a chain of hashes.

Each operation is idempotent by a key: the same again returns the entry that is there; the same key with another amount
is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, get_args

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from luthier import faults
from luthier.billing import queries
from luthier.billing.pricing import format_dollars
from luthier.billing.tables import Hold, LedgerAccount, LedgerEntry
from luthier.db import Session
from luthier.errors import Conflict, InvalidRequest, PaymentRequired

Kind = Literal["deposit", "withdraw", "grant", "adjust", "hold", "capture", "release", "refund"]
Account = Literal["cash", "credit", "held", "spent", "payments", "adjustments"]
ACCOUNTS: Final[tuple[Account, ...]] = get_args(Account)
OWN_ACCOUNTS: Final[tuple[Account, ...]] = ("cash", "credit", "held", "spent")

MAX_NANOS = 2**63 - 1
GENESIS = ""  # the hash before an organization's first entry


@dataclass(frozen=True)
class Cause:
    """What an entry is due to."""

    kind: Literal["job", "payment", "operator"]
    id: str


@dataclass(frozen=True)
class Balance:
    """An organization's accounts. ``available_nanos`` is what may be held for a new job."""

    cash_nanos: int
    credit_nanos: int
    held_nanos: int
    spent_nanos: int

    @property
    def available_nanos(self) -> int:
        """Cash and credit that nothing is held of; below zero after a disputed payment."""
        return self.cash_nanos + self.credit_nanos


@dataclass(frozen=True)
class EntryView:
    """One entry. ``amounts`` has the accounts that it moves, signed; they sum to zero."""

    organization_id: str
    seq: int
    created_at: datetime
    kind: Kind
    key: str
    cause: Cause
    note: str
    amounts: dict[Account, int]


@dataclass(frozen=True)
class HoldView:
    """What was set aside for a job, and what became of it. ``captured_nanos`` is None while it is open."""

    job_id: str
    organization_id: str
    project_id: str
    api_key_id: str
    created_at: datetime
    resolved_at: datetime | None
    amount_nanos: int
    captured_nanos: int | None
    refunded_nanos: int


class InsufficientFunds(PaymentRequired):
    """The available balance is below a price. ``balance`` is what there is, ``price_nanos`` what is wanted."""

    def __init__(self, balance: Balance, price_nanos: int) -> None:
        missing = price_nanos - balance.available_nanos
        super().__init__(
            "insufficient_balance",
            f"the price is {format_dollars(price_nanos)}, the available balance {format_dollars(balance.available_nanos)}: "
            f"{format_dollars(missing)} is missing",
            hint="have the operator grant credit, wait for a running job to give back what is held for it, "
            "or make the job smaller",
        )
        self.balance = balance
        self.price_nanos = price_nanos


def lock(tx: Session, organization_id: str) -> None:
    """Keep others from moving this organization's money until the transaction ends."""
    _lock_account(tx, organization_id)


def get_balance(tx: Session, organization_id: str) -> Balance:
    """Return what an organization has; zeros before its first entry."""
    row = queries.find_account(tx, organization_id)
    if row is None:
        return Balance(0, 0, 0, 0)
    return Balance(row.cash_nanos, row.credit_nanos, row.held_nanos, row.spent_nanos)


def deposit(
    tx: Session, organization_id: str, nanos: int, *, key: str, cause: Cause, note: str, now: datetime
) -> EntryView:
    """Take in a payment: payments → cash. Raises InvalidRequest for an amount that is not a positive number of nanos."""
    require_amount(nanos)
    return _post(tx, organization_id, "deposit", {"payments": -nanos, "cash": nanos}, key, cause, note, now)


def withdraw(
    tx: Session, organization_id: str, nanos: int, *, key: str, cause: Cause, note: str, now: datetime
) -> EntryView:
    """Give a payment back, or lose it in a dispute: cash → payments. It may take cash below zero."""
    require_amount(nanos)
    return _post(tx, organization_id, "withdraw", {"cash": -nanos, "payments": nanos}, key, cause, note, now)


def grant(
    tx: Session, organization_id: str, nanos: int, *, key: str, cause: Cause, note: str, now: datetime
) -> EntryView:
    """Give promotional credit: adjustments → credit."""
    require_amount(nanos)
    return _post(tx, organization_id, "grant", {"adjustments": -nanos, "credit": nanos}, key, cause, note, now)


def adjust(
    tx: Session, organization_id: str, nanos: int, *, key: str, cause: Cause, note: str, now: datetime
) -> EntryView:
    """Correct cash by hand, up or down, below zero too: adjustments → cash."""
    require_amount(abs(nanos) if _is_whole(nanos) else nanos)
    return _post(tx, organization_id, "adjust", {"adjustments": -nanos, "cash": nanos}, key, cause, note, now)


def hold(
    tx: Session,
    organization_id: str,
    nanos: int,
    *,
    job_id: str,
    project_id: str,
    api_key_id: str,
    may_overdraw: bool = False,
    now: datetime,
) -> EntryView:
    """Set a job's price aside, credit first. Raises InsufficientFunds, unless ``may_overdraw``.

    A price of zero is held too: every job that waits or runs has a hold.
    """
    if nanos != 0:
        require_amount(nanos)
    account = _lock_account(tx, organization_id)
    key = f"hold:{job_id}"
    if (existing := _find_same(tx, organization_id, key, {"held": nanos})) is not None:
        return existing
    if nanos > account.cash_nanos + account.credit_nanos and not may_overdraw:
        raise InsufficientFunds(get_balance(tx, organization_id), nanos)
    from_credit = min(nanos, account.credit_nanos)
    tx.add(
        Hold(
            job_id=job_id,
            organization_id=organization_id,
            project_id=project_id,
            api_key_id=api_key_id,
            created_at=now,
            amount_nanos=nanos,
            credit_nanos=from_credit,
            refunded_nanos=0,
        )
    )
    amounts: dict[Account, int] = {"credit": -from_credit, "cash": from_credit - nanos, "held": nanos}
    note = f"Held {format_dollars(nanos)} for job {job_id}"
    entry = _post(tx, organization_id, "hold", amounts, key, Cause("job", job_id), note, now)
    faults.hit("hold.before_commit")
    return entry


def resolve(tx: Session, job_id: str, captured_nanos: int, *, now: datetime) -> EntryView:
    """End a job's hold: capture so much of it, credit first, and release the rest to where it came from.

    The same again changes nothing. Raises Conflict when it was resolved with another amount, InvalidRequest for more
    than was held.
    """
    if captured_nanos != 0:
        require_amount(captured_nanos)
    held = queries.get_hold(tx, job_id)
    _lock_account(tx, held.organization_id)
    held = queries.lock_hold(tx, job_id)
    key = f"resolve:{job_id}"
    existing = _find_same(tx, held.organization_id, key, {"held": -held.amount_nanos, "spent": captured_nanos})
    if existing is not None:
        return existing
    if captured_nanos > held.amount_nanos:
        raise InvalidRequest(
            "capture_exceeds_hold",
            f"{format_dollars(captured_nanos)} cannot be captured of {format_dollars(held.amount_nanos)}, held for {job_id}",
            hint="capture at most what is held",
        )
    held.captured_nanos = captured_nanos
    held.resolved_at = now
    credit_back = held.credit_nanos - min(captured_nanos, held.credit_nanos)
    released = held.amount_nanos - captured_nanos
    amounts: dict[Account, int] = {
        "held": -held.amount_nanos,
        "spent": captured_nanos,
        "credit": credit_back,
        "cash": released - credit_back,
    }
    kind: Kind = "capture" if captured_nanos else "release"
    entry = _post(
        tx, held.organization_id, kind, amounts, key, Cause("job", job_id), _say(job_id, captured_nanos, released), now
    )
    faults.hit("resolve.before_commit")
    return entry


def _say(job_id: str, captured: int, released: int) -> str:
    if not captured:
        return f"Released {format_dollars(released)} held for job {job_id}; nothing was charged"
    rest = f"; released the other {format_dollars(released)}" if released else ""
    return f"Charged {format_dollars(captured)} for job {job_id}{rest}"


def refund(tx: Session, job_id: str, nanos: int, *, key: str, reason: str, now: datetime) -> EntryView:
    """Give back what a job was charged, or a part of it; cash first, for that was the organization's own.

    Raises InvalidRequest for more than was captured and not refunded yet.
    """
    require_amount(nanos)
    held = queries.get_hold(tx, job_id)
    _lock_account(tx, held.organization_id)
    held = queries.lock_hold(tx, job_id)
    if (existing := _find_same(tx, held.organization_id, key, {"spent": -nanos})) is not None:
        return existing
    captured = held.captured_nanos or 0
    if nanos > captured - held.refunded_nanos:
        raise InvalidRequest(
            "refund_exceeds_charge",
            f"{format_dollars(nanos)} cannot be refunded for {job_id}: {format_dollars(captured)} was charged, "
            f"{format_dollars(held.refunded_nanos)} of it refunded before",
            hint="refund at most what was charged",
        )
    cash_charged = captured - min(captured, held.credit_nanos)
    to_cash = min(nanos, max(0, cash_charged - held.refunded_nanos))
    held.refunded_nanos += nanos
    amounts: dict[Account, int] = {"spent": -nanos, "cash": to_cash, "credit": nanos - to_cash}
    note = f"Refunded {format_dollars(nanos)} for job {job_id}: {reason}"
    entry = _post(tx, held.organization_id, "refund", amounts, key, Cause("job", job_id), note, now)
    faults.hit("refund.before_commit")
    return entry


def find_hold(tx: Session, job_id: str) -> HoldView | None:
    """Return what was set aside for a job; None for one that was never priced."""
    row = queries.find_hold(tx, job_id)
    return None if row is None else _view_hold(row)


def list_entries(
    tx: Session,
    organization_id: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    job_id: str | None = None,
    limit: int | None = None,
) -> list[EntryView]:
    """Return an organization's entries, oldest first: those from ``start`` to before ``end``, of one job if named."""
    rows = queries.list_entries(tx, organization_id, start=start, end=end, job_id=job_id, limit=limit)
    return [_view(row) for row in rows]


def require_amount(nanos: int) -> None:
    """Raise InvalidRequest unless this is a whole, positive number of nano-dollars that fits into 63 bits."""
    if not _is_whole(nanos) or not 0 < nanos <= MAX_NANOS:
        raise InvalidRequest(
            "invalid_amount",
            f"not an amount of money: {nanos!r} nano-dollars",
            hint=f"an amount is a whole number from 1 to {MAX_NANOS} nano-dollars ($1 is 1,000,000,000)",
            param="amount",
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _post(  # noqa: PLR0917  the fields of an entry, in their order
    tx: Session,
    organization_id: str,
    kind: Kind,
    amounts: dict[Account, int],
    key: str,
    cause: Cause,
    note: str,
    now: datetime,
) -> EntryView:
    account = _lock_account(tx, organization_id)
    now = now.astimezone(UTC)  # the hash is of the text of it, and it is read back as UTC
    amounts = {name: nanos for name, nanos in amounts.items() if nanos}
    if (existing := _find_same(tx, organization_id, key, amounts)) is not None:
        return existing
    values = {f"{name}_nanos": amounts.get(name, 0) for name in ACCOUNTS}
    assert sum(values.values()) == 0, f"{kind} {key} is not balanced: {amounts}"
    after = {f"{name}_nanos": getattr(account, f"{name}_nanos") + amounts.get(name, 0) for name in OWN_ACCOUNTS}
    if any(abs(value) > MAX_NANOS for value in after.values()):
        raise InvalidRequest(
            "balance_too_large",
            f"the balance would be more than a ledger holds: {max(after.values(), key=abs)} nano-dollars",
            hint="move less at once",
            param="amount",
        )
    entry: dict[str, object] = {
        "organization_id": organization_id,
        "seq": account.last_seq + 1,
        "created_at": now,
        "kind": kind,
        "key": key,
        "cause_kind": cause.kind,
        "cause_id": cause.id,
        "note": note,
        **values,
        "previous_hash": account.last_hash,
    }
    entry["hash"] = hash_entry(entry)
    tx.execute(sa.insert(LedgerEntry), [entry])
    for name, value in after.items():
        setattr(account, name, value)
    account.last_seq += 1
    account.last_hash = str(entry["hash"])
    tx.flush()
    return EntryView(organization_id, account.last_seq, now, kind, key, cause, note, amounts)


_HASHED = (
    "organization_id", "seq", "created_at", "kind", "key", "cause_kind", "cause_id", "note",
    *(f"{name}_nanos" for name in ACCOUNTS), "previous_hash",
)  # fmt: skip


def hash_entry(entry: dict[str, object]) -> str:
    """Return the SHA-256 of an entry's fields, the hash of the entry before it among them, as JSON."""
    return hashlib.sha256(msgspec.json.encode([entry[name] for name in _HASHED])).hexdigest()


def _lock_account(tx: Session, organization_id: str) -> LedgerAccount:
    """Return an organization's accounts, which nobody else changes until the transaction ends."""
    row = queries.lock_account(tx, organization_id)
    if row is not None:
        return row
    fresh = LedgerAccount(
        organization_id=organization_id,
        cash_nanos=0,
        credit_nanos=0,
        held_nanos=0,
        spent_nanos=0,
        last_seq=0,
        last_hash=GENESIS,
    )
    try:
        with tx.begin_nested():
            tx.add(fresh)
    except IntegrityError:  # another transaction made it meanwhile (PostgreSQL)
        row = queries.lock_account(tx, organization_id)
        assert row is not None, f"the accounts of {organization_id} are there and are not"
        return row
    return fresh


def _find_same(tx: Session, organization_id: str, key: str, amounts: dict[Account, int]) -> EntryView | None:
    """Return the entry with this key. Raises Conflict when it moved other amounts on these accounts."""
    row = queries.find_entry(tx, organization_id, key)
    if row is None:
        return None
    view = _view(row)
    if any(view.amounts.get(name, 0) != nanos for name, nanos in amounts.items()):
        raise Conflict(
            "key_used_before",
            f"the key {key} was used before, for another amount: {view.note}",
            hint="use another key for another transfer",
        )
    return view


def _view(row: LedgerEntry) -> EntryView:
    amounts = {name: getattr(row, f"{name}_nanos") for name in ACCOUNTS}
    return EntryView(
        organization_id=row.organization_id,
        seq=row.seq,
        created_at=row.created_at,
        kind=row.kind,  # type: ignore[arg-type]  # written here only
        key=row.key,
        cause=Cause(row.cause_kind, row.cause_id),  # type: ignore[arg-type]  # written here only
        note=row.note,
        amounts={name: nanos for name, nanos in amounts.items() if nanos},
    )


def _view_hold(row: Hold) -> HoldView:
    return HoldView(**{name: getattr(row, name) for name in HoldView.__dataclass_fields__})


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


def verify(tx: Session) -> Audit:
    """Recompute everything: the chain of hashes, the sums of all entries, the open holds."""
    accounts = queries.list_accounts(tx)
    found = (_verify_organization(tx, account) for account in accounts)
    problems = [problem for problem in found if problem is not None]
    known = {account.organization_id for account in accounts}
    problems += [
        Problem(one, None, "there are entries of an organization that has no accounts")
        for one in queries.list_organizations_with_entries(tx)
        if one not in known
    ]
    return Audit(len(accounts), sum(account.last_seq for account in accounts), problems)


def _verify_organization(tx: Session, account: LedgerAccount) -> Problem | None:
    totals = dict.fromkeys(OWN_ACCOUNTS, 0)
    return _verify_chain(tx, account, totals) or _verify_sums(tx, account, totals)


def _verify_chain(tx: Session, account: LedgerAccount, totals: dict[Account, int]) -> Problem | None:
    """Follow the entries and add them up in ``totals``; stop at the first that is not as it was written."""
    seq, previous = 0, GENESIS
    for row in queries.stream_entries(tx, account.organization_id):
        entry = dict(row._mapping)  # noqa: SLF001  the public name of a row's fields
        seq += 1
        if entry["seq"] != seq:
            return Problem(account.organization_id, seq, f"entry {seq} is missing")
        if entry["previous_hash"] != previous or hash_entry(entry) != entry["hash"]:
            return Problem(account.organization_id, seq, f"entry {seq} was altered: its hash does not fit")
        for name in OWN_ACCOUNTS:
            totals[name] += entry[f"{name}_nanos"]
        previous = str(entry["hash"])
    if seq != account.last_seq or previous != account.last_hash:
        return Problem(account.organization_id, seq + 1, f"entry {seq + 1} is missing: there were {account.last_seq}")
    return None


def _verify_sums(tx: Session, account: LedgerAccount, totals: dict[Account, int]) -> Problem | None:
    for name in OWN_ACCOUNTS:
        if totals[name] != (kept := getattr(account, f"{name}_nanos")):
            message = f"{name} is kept as {format_dollars(kept)}, its entries sum to {format_dollars(totals[name])}"
            return Problem(account.organization_id, None, message)
    open_nanos = queries.sum_open_holds(tx, account.organization_id)
    if open_nanos != account.held_nanos:
        message = f"{format_dollars(account.held_nanos)} is held, the open holds sum to {format_dollars(open_nanos)}"
        return Problem(account.organization_id, None, message)
    return None
