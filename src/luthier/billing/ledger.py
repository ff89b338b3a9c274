"""The ledger: the only code that moves money.

Double entry, immutable, in nano-dollars. An organization has cash, promotional credit, what is held for its jobs and
what it has spent; the platform has payments (money from outside) and adjustments (money that an operator gave), and its
revenue is what the organizations have spent: one account, seen from two sides. Every entry moves money between these
accounts, names its cause and says in a sentence what happened. Entries of an organization form a chain of hashes.

Each operation is idempotent by a key (of its own kind, so that none meets another's): the same again returns the entry
that is there; the same key with another amount is refused. Whether money may be held is for ``funds`` to say; whether the books are as they were written, for ``audit``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, get_args

import msgspec

from luthier import faults
from luthier.billing import queries
from luthier.billing.money import MAX_NANOS, format_money
from luthier.billing.prices import Method, TrainingType
from luthier.billing.queries import AccountRow, BoughtRow, HoldRow
from luthier.billing.tables import LedgerEntry
from luthier.db import Session
from luthier.errors import Conflict, InvalidRequest

Kind = Literal["deposit", "withdraw", "grant", "adjust", "hold", "capture", "release", "refund"]
Account = Literal["cash", "credit", "held", "spent", "payments", "adjustments"]
ACCOUNTS: Final[tuple[Account, ...]] = get_args(Account)
OWN_ACCOUNTS: Final[tuple[Account, ...]] = ("cash", "credit", "held", "spent")

SKEW: Final = timedelta(hours=1)  # a clock that is put back by less does not bring an entry before the one it follows
_TOKENS_A_RATE: Final = 1_000_000
GENESIS: Final = ""  # the hash before an organization's first entry

Amounts = Mapping[Account, int]


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
    amounts: Amounts


@dataclass(frozen=True)
class HoldView:
    """What was set aside for a job, and what became of it. ``captured_nanos`` is None while it is open."""

    job_id: str
    organization_id: str
    project_id: str
    api_key_id: str
    created_at: datetime
    resolved_at: datetime | None
    base_model: str
    method: str
    training_type: str
    billed_tokens: int
    rate_nanos: int
    price_version: str
    currency: str
    amount_nanos: int
    captured_nanos: int | None
    refunded_nanos: int

    @property
    def charged_nanos(self) -> int:
        """What the job has cost so far: captured and not refunded."""
        return (self.captured_nanos or 0) - self.refunded_nanos


@dataclass(frozen=True, kw_only=True)
class Purchase:
    """What a hold is for: a job, who pays for it, and how its price comes about."""

    job_id: str
    organization_id: str
    project_id: str
    api_key_id: str
    base_model: str
    method: Method
    training_type: TrainingType
    billed_tokens: int
    rate_nanos: int
    price_nanos: int
    price_version: str
    currency: str


class Overdrawn(Exception):
    """A hold would take the available balance below what is allowed. ``available_nanos`` is what there is."""

    def __init__(self, available_nanos: int) -> None:
        super().__init__(f"{available_nanos} nano-dollars are available")
        self.available_nanos = available_nanos


def lock(tx: Session, organization_id: str, *, now: datetime) -> None:
    """Keep others from moving this organization's money until the transaction ends."""
    _lock_account(tx, organization_id, now)


def get_balance(tx: Session, organization_id: str) -> Balance:
    """Return what an organization has; zeros before its first entry."""
    row = queries.find_account(tx, organization_id)
    return Balance(0, 0, 0, 0) if row is None else _view_balance(row)


def deposit(
    tx: Session, organization_id: str, nanos: int, *, key: str, cause: Cause, note: str, now: datetime
) -> EntryView:
    """Take in a payment: payments → cash. Raises InvalidRequest for an amount that is not a positive number of nanos."""
    require_amount(nanos)
    return _transfer(tx, organization_id, "deposit", {"payments": -nanos, "cash": nanos}, key, cause, note, now)


def withdraw(
    tx: Session, organization_id: str, nanos: int, *, key: str, cause: Cause, note: str, now: datetime
) -> EntryView:
    """Give a payment back, or lose it in a dispute: cash → payments. It may take cash below zero."""
    require_amount(nanos)
    return _transfer(tx, organization_id, "withdraw", {"cash": -nanos, "payments": nanos}, key, cause, note, now)


def grant(
    tx: Session, organization_id: str, nanos: int, *, key: str, cause: Cause, note: str, now: datetime
) -> EntryView:
    """Give promotional credit: adjustments → credit."""
    require_amount(nanos)
    return _transfer(tx, organization_id, "grant", {"adjustments": -nanos, "credit": nanos}, key, cause, note, now)


def adjust(
    tx: Session, organization_id: str, nanos: int, *, key: str, cause: Cause, note: str, now: datetime
) -> EntryView:
    """Correct cash by hand, up or down, below zero too: adjustments → cash."""
    require_amount(abs(nanos) if _is_whole(nanos) else nanos)
    return _transfer(tx, organization_id, "adjust", {"adjustments": -nanos, "cash": nanos}, key, cause, note, now)


def hold(tx: Session, purchase: Purchase, *, overdraft_nanos: int | None = 0, now: datetime) -> EntryView:
    """Set a job's price aside, credit first. A price of zero is held too: every job that waits or runs has a hold.

    Raises Overdrawn where that takes the available balance more than ``overdraft_nanos`` below zero (None: any).
    """
    nanos = purchase.price_nanos
    if nanos != 0:
        require_amount(nanos)
    account = _lock_account(tx, purchase.organization_id, now)
    key, cause = f"hold:{purchase.job_id}", Cause("job", purchase.job_id)
    available = account.cash_nanos + account.credit_nanos
    if overdraft_nanos is not None and nanos > available + overdraft_nanos:
        if (existing := _find_same(tx, purchase.organization_id, key, {"held": nanos}, cause)) is not None:
            return existing
        raise Overdrawn(available)
    from_credit = min(nanos, account.credit_nanos)
    amounts: Amounts = {"credit": -from_credit, "cash": from_credit - nanos, "held": nanos}
    note = describe_hold(purchase, nanos)
    entry, is_new = _post(tx, account, "hold", amounts, key, cause, note, now, same={"held": nanos})
    if is_new:
        queries.insert_hold(tx, vars(purchase), credit_nanos=from_credit, now=entry.created_at)
    faults.hit("hold.before_commit")
    return entry


def describe_hold(bought: Purchase | BoughtRow, nanos: int) -> str:
    """Say what an amount is held for and who pays: so the entry's hash covers whatever a hold keeps beside its amounts."""
    rate = format_money(bought.rate_nanos * _TOKENS_A_RATE, bought.currency)
    least = ", the least that a job costs" if nanos > bought.billed_tokens * bought.rate_nanos else ""
    return (
        f"Held {format_money(nanos, bought.currency)} for job {bought.job_id}: {bought.billed_tokens:,} tokens of "
        f"{bought.base_model} ({bought.method}, {bought.training_type}) at {rate} a million "
        f"(prices of {bought.price_version}){least}; project {bought.project_id}, key {bought.api_key_id}"
    )


def resolve(tx: Session, job_id: str, captured_nanos: int, *, now: datetime) -> EntryView:
    """End a job's hold: capture so much of it, credit first, and release the rest to where it came from.

    The same again changes nothing. Raises Conflict when it was resolved with another amount, InvalidRequest for more
    than was held.
    """
    if captured_nanos != 0:
        require_amount(captured_nanos)
    account, held = queries.lock_hold(tx, job_id)
    key, cause = f"resolve:{job_id}", Cause("job", job_id)
    if held.resolved_at is not None:
        same: Amounts = {"held": -held.amount_nanos, "spent": captured_nanos}
        return _get_same(tx, held.organization_id, key, same, cause)
    if captured_nanos > held.amount_nanos:
        raise InvalidRequest(
            "capture_exceeds_hold",
            f"{format_money(captured_nanos, held.currency)} cannot be captured of "
            f"{format_money(held.amount_nanos, held.currency)}, held for {job_id}",
            hint="capture at most what is held",
        )
    credit_back = held.credit_nanos - min(captured_nanos, held.credit_nanos)
    released = held.amount_nanos - captured_nanos
    amounts: Amounts = {
        "held": -held.amount_nanos,
        "spent": captured_nanos,
        "credit": credit_back,
        "cash": released - credit_back,
    }
    entry, _ = _post(
        tx,
        account,
        "capture" if captured_nanos else "release",
        amounts,
        key,
        cause,
        _describe_resolution(held, captured_nanos, released),
        now,
    )
    queries.resolve_hold(tx, job_id, captured_nanos=captured_nanos, now=entry.created_at)
    faults.hit("resolve.before_commit")
    return entry


def _describe_resolution(held: HoldRow, captured: int, released: int) -> str:
    left = format_money(released, held.currency)
    if not captured:
        return f"Released {left} held for job {held.job_id}; nothing was charged"
    charged = f"Charged {format_money(captured, held.currency)} for job {held.job_id}"
    return f"{charged}; released the other {left}" if released else charged


def refund(tx: Session, job_id: str, nanos: int, *, key: str, reason: str, now: datetime) -> EntryView:
    """Give back what a job was charged, or a part of it; cash first, for that was the organization's own.

    Raises InvalidRequest for more than was captured and not refunded yet.
    """
    require_amount(nanos)
    account, held = queries.lock_hold(tx, job_id)
    key, cause = f"refund:{key}", Cause("job", job_id)
    if (existing := _find_same(tx, held.organization_id, key, {"spent": -nanos}, cause)) is not None:
        return existing
    captured = held.captured_nanos or 0
    if nanos > captured - held.refunded_nanos:
        raise InvalidRequest(
            "refund_exceeds_charge",
            f"{format_money(nanos, held.currency)} cannot be refunded for {job_id}: "
            f"{format_money(captured, held.currency)} was charged, "
            f"{format_money(held.refunded_nanos, held.currency)} of it refunded before",
            hint="refund at most what was charged",
        )
    cash_charged = captured - min(captured, held.credit_nanos)
    to_cash = min(nanos, max(0, cash_charged - held.refunded_nanos))
    amounts: Amounts = {"spent": -nanos, "cash": to_cash, "credit": nanos - to_cash}
    note = f"Refunded {format_money(nanos, held.currency)} for job {job_id}: {reason}"
    entry, _ = _post(tx, account, "refund", amounts, key, cause, note, now)
    queries.add_refund(tx, job_id, nanos)
    faults.hit("refund.before_commit")
    return entry


def find_hold(tx: Session, job_id: str) -> HoldView | None:
    """Return what was set aside for a job; None for one that was never priced."""
    row = queries.find_hold(tx, job_id)
    return None if row is None else _view_hold(row)


def find_entry(tx: Session, organization_id: str, kind: Kind, key: str) -> EntryView | None:
    """Return the entry of this kind that was made under a caller's key."""
    row = queries.find_entry(tx, organization_id, f"{kind}:{key}")
    return None if row is None else view_entry(row)


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
    return [view_entry(row) for row in rows]


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


def _transfer(  # noqa: PLR0917  the fields of an entry, in their order
    tx: Session,
    organization_id: str,
    kind: Kind,
    amounts: Amounts,
    key: str,
    cause: Cause,
    note: str,
    now: datetime,
) -> EntryView:
    account = _lock_account(tx, organization_id, now)
    entry, _ = _post(tx, account, kind, amounts, f"{kind}:{key}", cause, note, now)
    return entry


def _post(  # noqa: PLR0917  the fields of an entry, in their order
    tx: Session,
    account: AccountRow,
    kind: Kind,
    amounts: Amounts,
    key: str,
    cause: Cause,
    note: str,
    now: datetime,
    *,
    same: Amounts | None = None,
) -> tuple[EntryView, bool]:
    """Write an entry of the locked accounts; return it, and whether it is new.

    Raises Conflict when the key was used for other amounts: all of them, or those in ``same``.
    """
    values = {f"{name}_nanos": amounts.get(name, 0) for name in ACCOUNTS}
    assert sum(values.values()) == 0, f"{kind} {key} is not balanced: {amounts}"
    entry: dict[str, object] = {
        "organization_id": account.organization_id,
        "seq": account.last_seq + 1,
        "created_at": _date(now, account),
        "kind": kind,
        "key": key,
        "cause_kind": cause.kind,
        "cause_id": cause.id,
        "note": note,
        **values,
        "previous_hash": account.last_hash,
    }
    entry["hash"] = hash_entry(entry)
    _require_room(account, amounts)
    if not queries.insert_entry(tx, entry):
        return _get_same(tx, account.organization_id, key, same or amounts, cause), False
    return view_entry(entry), True


def _date(now: datetime, account: AccountRow) -> datetime:
    """Return an entry's time in UTC, as it is read back for its hash.

    A clock that was put back a little must not bring an entry into a month that is closed. One that was far ahead for
    a moment must not date everything after it.
    """
    moment = now.astimezone(UTC)
    return max(moment, account.last_at) if account.last_at - moment <= SKEW else moment


def _require_room(account: AccountRow, amounts: Amounts) -> None:
    after = [getattr(account, f"{name}_nanos") + amounts.get(name, 0) for name in OWN_ACCOUNTS]
    largest = max(after, key=abs)
    if abs(largest) > MAX_NANOS:
        raise InvalidRequest(
            "balance_too_large",
            f"the balance would be more than a ledger holds: {largest} nano-dollars",
            hint="move less at once",
            param="amount",
        )


_HASHED = (
    "organization_id", "seq", "created_at", "kind", "key", "cause_kind", "cause_id", "note",
    *(f"{name}_nanos" for name in ACCOUNTS), "previous_hash",
)  # fmt: skip


def hash_entry(entry: Mapping[str, object]) -> str:
    """Return the SHA-256 of an entry's fields, the hash of the entry before it among them, as JSON."""
    return hashlib.sha256(msgspec.json.encode([entry[name] for name in _HASHED])).hexdigest()


def _lock_account(tx: Session, organization_id: str, now: datetime) -> AccountRow:
    """Return an organization's accounts, which nobody else changes until the transaction ends."""
    row = queries.lock_account(tx, organization_id)
    if row is None:
        queries.ensure_account(tx, organization_id, last_hash=GENESIS, now=now)
        row = queries.lock_account(tx, organization_id)
        assert row is not None, f"the accounts of {organization_id} are there and are not"
    return row


def _find_same(tx: Session, organization_id: str, key: str, amounts: Amounts, cause: Cause) -> EntryView | None:
    """Return the entry with this key. Raises Conflict when it has another cause, or moved other amounts on these accounts."""
    row = queries.find_entry(tx, organization_id, key)
    if row is None:
        return None
    view = view_entry(row)
    if view.cause != cause or any(view.amounts.get(name, 0) != nanos for name, nanos in amounts.items()):
        raise Conflict(
            "key_used_before",
            f"the key {key} was used before, for another transfer: {view.note}",
            hint="use another key for another transfer",
        )
    return view


def _get_same(tx: Session, organization_id: str, key: str, amounts: Amounts, cause: Cause) -> EntryView:
    existing = _find_same(tx, organization_id, key, amounts, cause)
    assert existing is not None, f"entry {key} of {organization_id} is there and is not"
    return existing


def view_entry(row: LedgerEntry | Mapping[str, object]) -> EntryView:
    """Return an entry as callers see it."""
    values = row if isinstance(row, Mapping) else {name: getattr(row, name) for name in _HASHED}
    amounts = {name: values[f"{name}_nanos"] for name in ACCOUNTS if values[f"{name}_nanos"]}
    return EntryView(
        cause=Cause(values["cause_kind"], values["cause_id"]),  # type: ignore[arg-type]  # written here only
        amounts=amounts,  # type: ignore[arg-type]  # whole numbers
        **{name: values[name] for name in _COPIED},  # type: ignore[arg-type]  # columns of the same names
    )


_COPIED = tuple(name for name in EntryView.__dataclass_fields__ if name not in {"cause", "amounts"})


def _view_balance(row: AccountRow) -> Balance:
    return Balance(row.cash_nanos, row.credit_nanos, row.held_nanos, row.spent_nanos)


def _view_hold(row: HoldRow) -> HoldView:
    return HoldView(**{name: getattr(row, name) for name in HoldView.__dataclass_fields__})
