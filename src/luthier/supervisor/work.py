"""The kinds of chores: what each runs as a process and what its answer becomes. Thin: the domains own the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from luthier import faults
from luthier.billing import quotes
from luthier.billing.quotes import TokeniseOrder
from luthier.catalog import service as catalog
from luthier.db import Session
from luthier.errors import NotFound
from luthier.files import service as files
from luthier.settings import Settings
from luthier.storage import ObjectStore

ORDER = "order.json"
RESULT = "result.json"
INPUT = "input"
TOKENS = "tokens"

GIB = 1024**3
FETCH_TIMEOUT_S = 6 * 3600.0  # a large model over a slow line
FETCH_MEMORY_BYTES = 16 * GIB  # of address space: one file of weights is mapped at a time

Answer = Mapping[str, Any]  # the document in result.json: only the domain that asked knows its form


def _keep_nothing(_store: ObjectStore, _directory: Path, _answer: Answer) -> None:
    """Keep no bytes: the answer is all that there is."""


@dataclass(frozen=True)
class Chore:
    """One piece of work that was claimed. ``prepare`` and ``keep`` touch files, the others run in a transaction."""

    kind: str
    subject: str
    timeout_s: float
    is_claimed: Callable[[Session], bool]  # locks its row; false: nothing may be written about it any more
    prepare: Callable[[ObjectStore, Path], list[str]]  # puts its input into the directory; module and arguments
    renew: Callable[[Session, datetime, float], None]  # prolongs the claim by so many seconds; by none: gives it back
    record: Callable[[Session, Answer, datetime], None]
    fail: Callable[[Session, str, datetime, bool], None]  # there is no answer: why, and whether that is final
    keep: Callable[[ObjectStore, Path, Answer], None] = _keep_nothing  # bytes into the store, before ``record``
    memory_bytes: int | None = None  # None: its own command limits itself
    needs_network: bool = False


def claim_check(tx: Session, settings: Settings, *, now: datetime, claim_s: float) -> Chore | None:
    """Take a file to validate."""
    order = files.claim_check(tx, now=now, claim_s=claim_s)
    if order is None:
        return None

    def prepare(store: ObjectStore, directory: Path) -> list[str]:
        store.fetch_file(order.object_key, directory / INPUT)
        limit = ["--memory-bytes", str(settings.check_memory_bytes)]
        return ["luthier.datasets", "check", str(directory / INPUT), "--out", str(directory / RESULT), *limit]

    return Chore(
        kind="check",
        subject=order.file_id,
        timeout_s=settings.check_timeout_s,
        is_claimed=lambda tx: files.has_check_claim(tx, order.file_id, order.claim),
        prepare=prepare,
        renew=lambda tx, now, claim_s: files.renew_check(tx, order.file_id, now=now, claim_s=claim_s),
        record=lambda tx, answer, now: files.record_check(tx, order.file_id, dict(answer), now=now),
        fail=lambda tx, message, now, is_final: files.fail_check(
            tx, order.file_id, message, now=now, is_final=is_final
        ),
    )


def claim_fetch(tx: Session, settings: Settings, *, now: datetime, claim_s: float) -> Chore | None:
    """Take a base model to fetch."""
    order = catalog.claim_fetch(tx, now=now, claim_s=claim_s)
    if order is None:
        return None

    def prepare(_: ObjectStore, directory: Path) -> list[str]:
        (directory / ORDER).write_bytes(msgspec.json.encode(order))
        places = ["--models-dir", str(settings.models_dir), "--private-dir", str(settings.home)]
        return ["luthier.catalog", "fetch", str(directory / ORDER), *places, "--result", str(directory / RESULT)]

    return Chore(
        kind="fetch",
        subject=order.name,
        timeout_s=FETCH_TIMEOUT_S,
        is_claimed=lambda tx: catalog.has_fetch_claim(tx, order.name, order.claim),
        memory_bytes=FETCH_MEMORY_BYTES,
        needs_network=True,
        prepare=prepare,
        renew=lambda tx, now, claim_s: catalog.renew_fetch(tx, order.name, now=now, claim_s=claim_s),
        record=lambda tx, answer, now: catalog.record_fetch(tx, order.name, dict(answer), now=now),
        fail=lambda tx, message, now, is_final: catalog.fail_fetch(tx, order.name, message, now=now, is_final=is_final),
    )


def claim_tokenise(tx: Session, settings: Settings, *, now: datetime, claim_s: float) -> Chore | None:
    """Take a file to tokenise. What was asked for of a model that is another now, or gone, has failed."""
    order = quotes.claim(tx, now=now, claim_s=claim_s)
    if order is None:
        return None
    model_dir = _find_model_dir(tx, order)
    if model_dir is None:
        message = f"{order.model} was removed, or its tokenizer was replaced, before the tokens were counted"
        quotes.fail(tx, order.key, message, now=now, is_final=True)
        return None
    object_key = quotes.make_object_key(order.key)

    def prepare(store: ObjectStore, directory: Path) -> list[str]:
        store.fetch_file(order.file_object_key, directory / INPUT)
        return [
            "luthier.datasets", "tokenise", str(directory / INPUT),
            "--model-dir", model_dir,
            "--max-seq-length", str(order.max_seq_length),
            "--train-on-inputs", order.train_on_inputs,
            "--out", str(directory / TOKENS),
            "--result", str(directory / RESULT),
            "--memory-bytes", str(settings.tokenise_memory_bytes),
        ]  # fmt: skip

    def keep(store: ObjectStore, directory: Path, answer: Answer) -> None:
        if "error" not in answer and (directory / TOKENS).exists():  # gone: an earlier try has moved it
            faults.hit("chore.before_store")
            store.put_file(object_key, directory / TOKENS, move=True)

    def record(tx: Session, answer: Answer, now: datetime) -> None:
        if "error" in answer:
            quotes.reject(tx, order.key, answer["error"], now=now)
        else:
            quotes.record(tx, order.key, object_key=object_key, counts=answer["counts"], now=now)

    return Chore(
        kind="tokenise",
        subject=order.key,
        timeout_s=settings.tokenise_timeout_s,
        is_claimed=lambda tx: quotes.has_claim(tx, order.key, order.claim),
        prepare=prepare,
        keep=keep,
        renew=lambda tx, now, claim_s: quotes.renew(tx, order.key, now=now, claim_s=claim_s),
        record=record,
        fail=lambda tx, message, now, is_final: quotes.fail(tx, order.key, message, now=now, is_final=is_final),
    )


def _find_model_dir(tx: Session, order: TokeniseOrder) -> str | None:
    """Return the folder of the order's model; None when the name stands for another tokenizer, or for nothing."""
    try:
        model = catalog.get_model(tx, order.model)
    except NotFound:
        return None
    return model.path if model.tokenizer_digest == order.tokenizer_digest else None
