"""Exact token counts for prices: asked for by content, worked out once by a chore, kept while somebody has the content.

A row goes queued → running → ready; ``rejected`` when the data cannot be trained on (for good), ``failed``
when we could not do it in ``MAX_ATTEMPTS`` (a new request tries again). One that is not queued or running may be
forgotten; what is said of it afterwards changes nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy.exc import IntegrityError

from luthier.billing import queries
from luthier.billing.tables import Tokenization
from luthier.datasets import tokens
from luthier.db import Session

OBJECT_PREFIX = "tokens/"
SETTLED = ("ready", "rejected", "failed")
MAX_ATTEMPTS = 3  # a machine that was short of memory for a moment is tried again; one that always is, is not

TrainOnInputs = Literal["auto", "true", "false"]


@dataclass(frozen=True)
class TokenizationView:
    """The state of one count. ``counts`` is there when ready, ``error`` (code, message, hint) when rejected or failed."""

    key: str
    status: Literal["queued", "running", "ready", "rejected", "failed"]
    model: str
    tokenizer_digest: str
    object_key: str | None
    counts: Mapping[str, int | list[int]] | None
    error: Mapping[str, str | None] | None


@dataclass(frozen=True)
class SettledView:
    """A count that nobody works on, by what it is good for: this content with this tokenizer."""

    key: str
    file_sha256: str
    tokenizer_digest: str


@dataclass(frozen=True)
class TokeniseOrder:
    """One file to tokenise. The model's folder is looked up by name when the work starts.

    ``claim`` is the number under which the order was taken.
    """

    key: str
    claim: int
    file_sha256: str
    file_object_key: str
    model: str
    tokenizer_digest: str  # whose tokens are asked for: by now the name may stand for another model
    max_seq_length: int
    train_on_inputs: TrainOnInputs  # as the tokenising command takes it


def request(
    tx: Session,
    *,
    file_sha256: str,
    file_object_key: str,
    model: str,
    tokenizer_digest: str,
    max_seq_length: int,
    train_on_inputs: bool | Literal["auto"],
    now: datetime,
    retry_failed: bool = True,
) -> TokenizationView:
    """Ask for the counts of this content under these settings; the same again changes nothing.

    One that failed by our fault is queued again with all its attempts, unless ``retry_failed`` is off: for a
    caller that asked before, and is to be told.
    """
    key = tokens.make_key(file_sha256, tokenizer_digest, max_seq_length, train_on_inputs)
    row = queries.find_row_for_update(tx, key)  # who may go on to use it must not have it forgotten meanwhile
    if row is None:
        fresh = Tokenization(
            key=key,
            file_sha256=file_sha256,
            file_object_key=file_object_key,
            model=model,
            tokenizer_digest=tokenizer_digest,
            max_seq_length=max_seq_length,
            train_on_inputs=_spell(train_on_inputs),
            created_at=now,
            status="queued",
            attempts=0,
            claim_number=0,
        )
        row = _insert(tx, fresh)
    if row.status == "queued" or (row.status == "failed" and retry_failed):
        _refresh(tx, key, file_object_key=file_object_key, model=model)
    return _view(row)


def _refresh(tx: Session, key: str, *, file_object_key: str, model: str) -> None:
    """Queue a failed row again, and let one that waits be found under the names of today."""
    row = _get_row(tx, key)
    if row.status == "failed":
        row.status, row.attempts, row.error = "queued", 0, None
    if row.status == "queued":
        # The same bytes and tokenizer may be known by other names now, and the former ones be gone.
        row.file_object_key, row.model = file_object_key, model


def _insert(tx: Session, fresh: Tokenization) -> Tokenization:
    try:
        with tx.begin_nested():
            tx.add(fresh)
    except IntegrityError:  # another transaction asked for it meanwhile (PostgreSQL)
        row = queries.find_row_for_update(tx, fresh.key)
        assert row is not None, f"tokenization {fresh.key} is there and is not"
        return row
    return fresh


def _spell(train_on_inputs: bool | Literal["auto"]) -> TrainOnInputs:  # noqa: FBT001  a value, not a switch
    if train_on_inputs == "auto":
        return "auto"
    return "true" if train_on_inputs else "false"


def get(tx: Session, key: str) -> TokenizationView:
    """Return a tokenization that was requested."""
    row = queries.find_row(tx, key)
    assert row is not None, f"tokenization {key} was never requested"
    return _view(row)


def claim(tx: Session, *, now: datetime, claim_s: float) -> TokeniseOrder | None:
    """Take the oldest request for ``claim_s`` seconds; None when there is none.

    A claim that ran out without an answer is handed out again; after the last one the row has failed.
    """
    while (row := queries.find_claimable_row(tx, now)) is not None:
        if row.attempts < MAX_ATTEMPTS:
            row.status = "running"
            row.attempts += 1
            row.claim_number += 1
            row.claimed_until = now + timedelta(seconds=claim_s)
            return _order(row)
        _fail(row, f"counting the tokens was interrupted {row.attempts} times")
        tx.flush()  # the next query must not find it
    return None


def has_claim(tx: Session, key: str, claim: int) -> bool:
    """Lock the request and tell whether it is still worked on under this claim, and not under another's by now."""
    row = queries.find_row_for_update(tx, key)
    return row is not None and row.status == "running" and row.claim_number == claim


def renew(tx: Session, key: str, *, now: datetime, claim_s: float) -> None:
    """Say that a claimed request is still being worked on. Zero gives the claim back, and the attempt with it."""
    row = queries.find_row_for_update(tx, key)
    if row is None or row.status != "running":
        return
    row.claimed_until = now + timedelta(seconds=claim_s)
    if not claim_s:
        row.status, row.attempts = "queued", row.attempts - 1


def record(tx: Session, key: str, *, object_key: str, counts: Mapping[str, object], now: datetime) -> None:
    """Keep the counts, and where the tokens are. The first answer counts: the same key gives the same tokens."""
    del now  # what is kept does not depend on when
    row = queries.find_row_for_update(tx, key)
    if row is None or row.status in SETTLED:
        return  # and these tokens are an orphan that the sweep removes, or has removed
    row.status, row.claimed_until, row.error = "ready", None, None
    row.object_key = object_key
    row.counts = dict(counts)


def reject(tx: Session, key: str, error: Mapping[str, str | None], *, now: datetime) -> None:
    """Keep why the data cannot be trained on (code, message, hint); no other attempt is made."""
    del now  # see record
    row = queries.find_row_for_update(tx, key)
    if row is not None and row.status == "running":
        row.status, row.claimed_until = "rejected", None
        row.error = dict(error)


def fail(tx: Session, key: str, message: str, *, now: datetime, is_final: bool = False) -> None:
    """Keep why we could not do it; queued again until ``MAX_ATTEMPTS`` are used up, unless this is final."""
    del now  # see record
    row = queries.find_row_for_update(tx, key)
    if row is None or row.status != "running":
        return
    if is_final or row.attempts >= MAX_ATTEMPTS:
        _fail(row, message)
    else:
        row.status, row.claimed_until = "queued", None


def make_object_key(key: str) -> str:
    """Return where an attempt's tokens belong: each has its own place, so that two cannot meet."""
    return f"{OBJECT_PREFIX}{key}-{secrets.token_hex(8)}"


def _get_key(object_key: str) -> str:
    return object_key.removeprefix(OBJECT_PREFIX).partition("-")[0]


def list_settled(tx: Session) -> list[str]:
    """Return the keys of all counts that nobody works on."""
    return list(queries.list_keys(tx, SETTLED))


def lock_settled(tx: Session, keys: Collection[str]) -> list[SettledView]:
    """Return these counts, but for those that somebody works on; none is used by anybody new until ``tx`` ends."""
    rows = [queries.find_row_for_update(tx, key) for key in sorted(keys)]  # in one order for all
    return [
        SettledView(key=row.key, file_sha256=row.file_sha256, tokenizer_digest=row.tokenizer_digest)
        for row in rows
        if row is not None and row.status in SETTLED
    ]


def forget(tx: Session, keys: Collection[str]) -> None:
    """Forget counts that were locked in ``tx``; their tokens are orphans once it is committed."""
    queries.delete_rows(tx, keys)


def list_orphans(tx: Session, object_keys: Collection[str]) -> list[str]:
    """Return which of the stored tokens no count has and no attempt will claim."""
    rows = {row.key: row for row in queries.list_rows(tx, {_get_key(one) for one in object_keys})}
    return [one for one in object_keys if _is_orphan(one, rows.get(_get_key(one)))]


def _is_orphan(object_key: str, row: Tokenization | None) -> bool:
    return row is None or (row.status in SETTLED and row.object_key != object_key)


def _fail(row: Tokenization, message: str) -> None:
    row.status, row.claimed_until = "failed", None
    row.error = {"code": "tokenising_failed", "message": message, "hint": "create the job again to try again"}


def _get_row(tx: Session, key: str) -> Tokenization:
    row = queries.find_row_for_update(tx, key)
    assert row is not None, f"tokenization {key} was never requested"
    return row


def _order(row: Tokenization) -> TokeniseOrder:
    return TokeniseOrder(
        key=row.key,
        claim=row.claim_number,
        file_sha256=row.file_sha256,
        file_object_key=row.file_object_key,
        model=row.model,
        tokenizer_digest=row.tokenizer_digest,
        max_seq_length=row.max_seq_length,
        train_on_inputs=row.train_on_inputs,  # type: ignore[arg-type]  # written by _spell
    )


def _view(row: Tokenization) -> TokenizationView:
    return TokenizationView(
        key=row.key,
        status=row.status,  # type: ignore[arg-type]  # written here only
        model=row.model,
        tokenizer_digest=row.tokenizer_digest,
        object_key=row.object_key,
        counts=row.counts,
        error=row.error,
    )
