"""Rows for tests: who asks, what they uploaded, and jobs in every state.

Files, models and token counts are written as rows, as a chore would leave them. Jobs go through the
real services, so that a job in a state has all that such a job has.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from luthier import ids
from luthier.accounts.service import Principal
from luthier.accounts.tables import ApiKey, Organization, Project
from luthier.billing import ledger, prices, quotes
from luthier.billing.ledger import Cause, Purchase
from luthier.billing.money import NANOS_A_UNIT
from luthier.billing.payments.tables import Card, CardSetup, Payment, PaymentCustomer
from luthier.billing.policy import Policy
from luthier.catalog import builtin_models
from luthier.catalog import service as catalog
from luthier.catalog.tables import BaseModelRow
from luthier.db import Session
from luthier.files import service as files
from luthier.files.tables import File
from luthier.jobs import progress, queue, service
from luthier.jobs.request import JobRequest
from luthier.jobs.schemas import JobView, Outcome, ProgressUpdate

MODEL = builtin_models.TINY
OWNER = "supervisor-1"
LEASE_S = 30.0
POLICY = Policy(
    enabled=True,
    minimum_nanos=5 * NANOS_A_UNIT,
    processor="manual",
    grace_s=600.0,
    opening_grant_nanos=100 * NANOS_A_UNIT,
    prices=prices.load(),
)
_counter = itertools.count(1)


@dataclass(frozen=True)
class Inputs:
    """What a job needs: a base model and checked files. The validation file is None unless asked for."""

    model: str
    training_file: str
    validation_file: str | None = None


def make_principal(
    tx: Session, *, now: datetime, slug: str | None = None, is_admin: bool = True, dollars: int = 1000
) -> Principal:
    """Make an organization with some credit, one project and one key; nobody knows the key's secret."""
    number = next(_counter)
    slug = slug or f"acme-{number}"
    organization = Organization(id=ids.new_id("org"), name="Acme", created_at=now)
    tx.add(organization)
    tx.flush()
    if dollars:
        give(tx, organization.id, dollars * NANOS_A_UNIT, now=now)
    project = Project(id=ids.new_id("proj"), organization_id=organization.id, name="Support", slug=slug, created_at=now)
    tx.add(project)
    tx.flush()
    key = ApiKey(
        id=ids.new_id("key"),
        project_id=project.id,
        name="laptop",
        hint="lk-abcd",
        secret_hash=hashlib.sha256(project.id.encode()).digest(),
        is_admin=int(is_admin),
        created_at=now,
    )
    tx.add(key)
    tx.flush()
    return Principal(
        api_key_id=key.id,
        api_key_name=key.name,
        organization_id=organization.id,
        organization_name=organization.name,
        project_id=project.id,
        project_name=project.name,
        project_slug=project.slug,
        is_admin=is_admin,
    )


def give(tx: Session, organization_id: str, nanos: int, *, now: datetime) -> None:
    """Grant an organization credit."""
    key = f"test-{next(_counter)}"
    ledger.grant(tx, organization_id, nanos, key=key, cause=Cause("operator", "test"), note="For a test", now=now)


def make_purchase(organization_id: str, nanos: int, *, job_id: str = "ft-1", **changes: Any) -> Purchase:
    """Return what a hold is for: a job of as many tokens as nano-dollars."""
    values = {
        "job_id": job_id,
        "organization_id": organization_id,
        "project_id": "proj-1",
        "api_key_id": "key-1",
        "base_model": MODEL,
        "method": "sft",
        "training_type": "Lora",
        "billed_tokens": nanos,
        "rate_nanos": 1,
        "price_nanos": nanos,
        "price_version": POLICY.prices.version,
        "currency": "USD",
    }
    return Purchase(**(values | changes))


def make_card_and_payment(tx: Session, principal: Principal, *, now: datetime) -> dict[str, str]:
    """Make a saved card and a payment by it, as rows; return the ids by the names of their path parameters."""
    customer = PaymentCustomer(organization_id=principal.organization_id, created_at=now, ref="cus_1")
    card = Card(
        id=ids.new_id("card"), organization_id=principal.organization_id, created_at=now, ref="pm_1", brand="visa",
        last4="4242", exp_month=12, exp_year=2030, default_key=principal.organization_id,
    )  # fmt: skip
    tx.add_all([customer, card])
    tx.flush()
    setup = CardSetup(
        id=ids.new_id("setup"), organization_id=principal.organization_id, created_at=now, customer_ref="cus_1",
        kind="token", token="pm_1", return_url="https://luthier.example", status="succeeded", card_id=card.id, looks=0,
    )  # fmt: skip
    payment = Payment(
        id=ids.new_id("pay"), organization_id=principal.organization_id, created_at=now, updated_at=now,
        amount_nanos=20 * NANOS_A_UNIT, currency="USD", customer_ref="cus_1", card_id=card.id, is_automatic=0,
        status="succeeded", ref="pi_1", refunded_nanos=0, disputed_nanos=0, looks=0,
    )  # fmt: skip
    tx.add_all([setup, payment])
    tx.flush()
    return {"card_id": card.id, "setup_id": setup.id, "payment_id": payment.id}


def make_file(
    tx: Session,
    principal: Principal,
    *,
    now: datetime,
    status: str = "COMPLETED",
    filename: str = "train.jsonl",
    purpose: str = "fine-tune",
    lines: int = 10,
    report: dict[str, Any] | None = None,
    sha256: str | None = None,
) -> str:
    """Make the row of a file; its bytes are nowhere. Returns its id."""
    file_id = ids.new_id("file")
    sha256 = sha256 or hashlib.sha256(file_id.encode()).hexdigest()
    row = File(
        id=file_id,
        project_id=principal.project_id,
        filename=filename,
        purpose=purpose,
        file_type="jsonl",
        size_bytes=1000,
        sha256=sha256,
        object_key=files.make_object_key(file_id),
        created_at=now,
        processing_status=status,
        attempts=0,
        line_count=lines if status == "COMPLETED" else None,
        report=report,
    )
    tx.add(row)
    tx.flush()
    return file_id


def make_model(tx: Session, *, now: datetime, name: str = MODEL, status: str = "ready") -> str:
    """Make the row of a built-in base model, unless it is there; its folder is nowhere. Returns its name."""
    row = tx.get(BaseModelRow, name)
    if row is None:
        row = BaseModelRow(
            name=name, source="builtin", reference=name, is_builtin=1, created_at=now, status=status, attempts=0
        )
        tx.add(row)
    row.status = status
    if status == "ready":
        row.path = f"/nowhere/{name}"
        row.revision = hashlib.sha256(name.encode()).hexdigest()
        row.tokenizer_digest = hashlib.sha256(f"{name} tokenizer".encode()).hexdigest()
    tx.flush()
    return name


def make_counts(*, rows: int = 10, tokens: int = 1000, **changes: Any) -> dict[str, Any]:
    """Return counts as the tokenising command writes them: ``rows`` rows that are all used, none cut."""
    return {
        "rows": rows,
        "used_rows": rows,
        "dropped_rows": 0,
        "dropped_lines": [],
        "truncated_rows": 0,
        "truncated_lines": [],
        "tokens": tokens,
        "trained_tokens": max(tokens // 2, 1),
        "longest_row_tokens": max(tokens // max(rows, 1), 1),
        "packs": max(rows, 1),
        **changes,
    }


def make_tokenization(
    tx: Session,
    principal: Principal,
    file_id: str,
    *,
    now: datetime,
    model: str = MODEL,
    max_seq_length: int | None = None,
    train_on_inputs: Any = "auto",
    counts: dict[str, Any] | None = None,
) -> str:
    """Make the counts of a file ready, under the settings of a job that names none. Returns their key."""
    file = files.get_file(tx, principal.project_id, file_id)
    base_model = catalog.get_model(tx, model)
    view = quotes.request(
        tx,
        file_sha256=file.sha256,
        file_object_key=file.object_key,
        model=model,
        tokenizer_digest=base_model.tokenizer_digest,
        max_seq_length=max_seq_length or base_model.limits.max_seq_length_sft,
        train_on_inputs=train_on_inputs,
        now=now,
    )
    quotes.record(tx, view.key, object_key=f"tokens/{view.key}", counts=counts or make_counts(), now=now)
    tx.flush()
    return view.key


def make_inputs(
    tx: Session,
    principal: Principal,
    *,
    now: datetime,
    rows: int = 10,
    tokens: int = 1000,
    validation_tokens: int | None = None,
) -> Inputs:
    """Make everything that lets a job be priced at once."""
    model = make_model(tx, now=now)
    training_file = make_file(tx, principal, now=now, lines=rows)
    make_tokenization(tx, principal, training_file, now=now, counts=make_counts(rows=rows, tokens=tokens))
    validation_file = None
    if validation_tokens is not None:
        validation_file = make_file(tx, principal, now=now, filename="validation.jsonl", lines=rows)
        counts = make_counts(rows=rows, tokens=validation_tokens)
        make_tokenization(tx, principal, validation_file, now=now, counts=counts)
    return Inputs(model=model, training_file=training_file, validation_file=validation_file)


def make_request(inputs: Inputs, **fields: Any) -> JobRequest:
    """Return a create that names these inputs; ``fields`` are other wire fields."""
    return JobRequest.from_body(
        {
            "model": inputs.model,
            "training_file": inputs.training_file,
            "validation_file": inputs.validation_file,
            **fields,
        }
    )


def make_job(
    tx: Session,
    principal: Principal,
    *,
    now: datetime,
    state: str = "queued",
    inputs: Inputs | None = None,
    owner: str = OWNER,
    step: int = 0,
    total_steps: int = 10,
    **fields: Any,
) -> JobView:
    """Make a job in any state. One that a worker had gets there by the queue, so make it before any queued one.

    ``fields`` are wire fields of its request.
    """
    if state == "pending":
        inputs = inputs or Inputs(make_model(tx, now=now), make_file(tx, principal, now=now, status="QUEUED"))
    inputs = inputs or make_inputs(tx, principal, now=now)
    request = make_request(inputs, **({"random_seed": next(_counter)} | fields))
    job = service.create(tx, principal, request, policy=POLICY, now=now, idempotency_key=None)
    if state in {"pending", "queued"}:
        assert job.state == state, job.why
        return job
    claim = queue.claim(tx, owner=owner, lease_s=LEASE_S, now=now)
    assert claim is not None
    assert claim.job_id == job.id, "an older job is queued"
    progress.record(tx, job.id, claim.token, ProgressUpdate(step=step, total_steps=total_steps), now=now)
    _bring_to(tx, principal, claim.job_id, claim.token, state, now=now)
    return service.get_job(tx, principal.project_id, job.id)


def _bring_to(tx: Session, principal: Principal, job_id: str, token: int, state: str, *, now: datetime) -> None:
    if state in {"compressing", "uploading", "completed"}:
        progress.move(tx, job_id, token, "compressing", "model_compressing", "Compressing", now=now)
    if state in {"uploading", "completed"}:
        progress.move(tx, job_id, token, "uploading", "model_uploading", "Uploading", now=now)
    if state in {"cancel_requested", "cancelled"}:
        service.cancel(tx, principal.project_id, job_id, now=now)
    if state in {"error", "user_error"}:
        outcome = Outcome(state=state, message="the loss is not a number", hint="lower the learning rate")
        progress.settle(tx, job_id, token, outcome, now=now)
    elif state in {"cancelled", "completed"}:
        progress.settle(tx, job_id, token, Outcome(state=state), now=now)
