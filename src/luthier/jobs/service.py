"""Jobs as their owners see them: create, price, list, cancel, delete."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

import msgspec

from luthier import faults, ids
from luthier.accounts import service as accounts
from luthier.accounts.service import Principal
from luthier.billing import funds
from luthier.billing.ledger import Purchase
from luthier.billing.money import format_money
from luthier.billing.policy import Policy
from luthier.billing.pricing import Quote
from luthier.catalog import limits as catalog_limits
from luthier.catalog import service as catalog
from luthier.db import Session
from luthier.errors import Conflict, InvalidRequest, NotFound, PaymentRequired
from luthier.files import service as files
from luthier.files.service import FileView
from luthier.jobs import endings, hyperparameters, log, moves, queries, readiness, repeats, states, supervisors
from luthier.jobs.explain import Surroundings, explain
from luthier.jobs.readiness import Plan, Ready, Refusal, Wait, Warn
from luthier.jobs.repeats import confirm_delivered
from luthier.jobs.request import JobRequest
from luthier.jobs.schemas import Estimate, JobView
from luthier.jobs.tables import Job
from luthier.protocol.spec import Hyperparameters

__all__ = [
    "Estimate",
    "JobRequest",
    "JobView",
    "advance_pending",
    "cancel",
    "confirm_delivered",
    "count_by_state",
    "create",
    "delete",
    "estimate",
    "find_base_model",
    "find_live_job_using_file",
    "find_live_job_using_model",
    "get_job",
    "list_forgotten",
    "list_jobs",
    "list_pending",
    "list_tokenizations_in_use",
    "list_warnings",
    "resolve",
]

_NAME_ATTEMPTS = 5  # two jobs of one name and 32 equal random bits: once is rare, five times is a bug


def create(
    tx: Session,
    principal: Principal,
    request: JobRequest,
    *,
    policy: Policy,
    now: datetime,
    idempotency_key: str | None,
    is_retry: bool = False,
) -> JobView:
    """Make a job: priced, paid for by a hold and queued when everything is ready, pending until it is.

    The same create again may return the first job (see ``repeats``); ``is_retry`` is what the client says.
    Raises InvalidRequest with every problem of the request, NotFound for a model or a file, and PaymentRequired
    where the funds or a limit do not allow it.
    """
    repeats.require_valid_key(idempotency_key)
    job_id = ids.new_id("ft")
    first = repeats.claim(
        tx,
        api_key_id=principal.api_key_id,
        idempotency_key=idempotency_key,
        request_hash=repeats.hash_request(request),
        is_retry=is_retry,
        job_id=job_id,
        now=now,
    )
    if first is not None:
        return _view(tx, first, Surroundings())
    funds.require_minimum(tx, principal.organization_id, policy=policy)
    job = _make_job(tx, job_id, principal, request, now=now)
    tx.add(job)
    tx.flush()
    log.append(tx, job.id, states.INITIAL_EVENT, "Fine-tuning request created", now=now)
    for warning in list_warnings(request, n_evals=job.hyperparameters["n_evals"]):
        log.append(tx, job.id, "warning", warning.message, now=now, level="warning", data=warning.data)
    _advance(tx, job, policy, is_new=True, now=now)
    faults.hit("create.before_commit")
    return _view(tx, job, Surroundings())


def _make_job(tx: Session, job_id: str, principal: Principal, request: JobRequest, *, now: datetime) -> Job:
    resolved = resolve(tx, request)
    catalog.keep_model(tx, str(request.model))
    training_file, validation_file = _require_files(tx, principal.project_id, request)
    suffix = str(request.suffix) if request.suffix else None
    return Job(
        id=job_id,
        project_id=principal.project_id,
        api_key_id=principal.api_key_id,
        created_at=now,
        updated_at=now,
        state=states.INITIAL,
        base_model=str(request.model),
        training_file_id=training_file.id,
        training_file_bytes=training_file.size_bytes,
        training_file_lines=training_file.line_count,
        validation_file_id=validation_file.id if validation_file else None,
        output_name=_name_output(tx, job_id, principal.project_slug, str(request.model), suffix),
        suffix=suffix,
        hyperparameters=msgspec.to_builtins(resolved),
        request=request.list_sent(),
        lease_token=0,
        journal_offset=0,
        step=0,
        epochs_completed=0,
        tokens_done=0,
        next_event=1,
        next_metric=1,
    )


def resolve(tx: Session, request: JobRequest) -> Hyperparameters:
    """Return what a job of this request would train with; nothing is created, and files are not looked at.

    Raises InvalidRequest with every problem of the request, NotFound for the model: its limits are what the
    rest is judged by, so a wrong model is told alone.
    """
    if request.model in (None, "") and not request.from_checkpoint:
        raise InvalidRequest(
            "invalid_request",
            "model is required",
            hint="name a base model; luthier models list shows them",
            param="model",
        )
    if request.from_checkpoint and request.model in (None, ""):
        raise InvalidRequest(
            "invalid_request",
            "from_checkpoint: this server does not offer starting from a checkpoint yet",
            hint="leave from_checkpoint out and name a base model in model",
            param="from_checkpoint",
        )
    if not isinstance(request.model, str):
        raise InvalidRequest("invalid_request", "model must be a string", param="model")
    model = catalog.get_model(tx, request.model)
    return hyperparameters.resolve(request, catalog_limits.get_limits(model))


def _require_files(tx: Session, project_id: str, request: JobRequest) -> tuple[FileView, FileView | None]:
    """Return the files that a request names. Raises for an unknown one, and for one that can never be trained on."""
    training_file = files.keep_file(tx, project_id, str(request.training_file))
    validation_file = None
    if request.validation_file:
        validation_file = files.keep_file(tx, project_id, str(request.validation_file))
    for obstacle in (
        readiness.check_file("training", training_file),
        readiness.check_file("validation", validation_file) if validation_file else None,
    ):
        if isinstance(obstacle, Refusal):
            raise InvalidRequest(
                "training_file_not_usable" if obstacle.param == "training_file" else "validation_file_not_usable",
                obstacle.message,
                hint=obstacle.hint,
                param=obstacle.param,
            )
    return training_file, validation_file


def _name_output(tx: Session, job_id: str, project_slug: str, model: str, suffix: str | None) -> str:
    """Return the name of a job's output model; its last part is the beginning of the job's id, if that is free."""
    tail = model.rpartition("/")[2]
    stem = f"{project_slug}/{tail}-{suffix}" if suffix else f"{project_slug}/{tail}"
    for one in (job_id, *(ids.new_id("ft") for _ in range(_NAME_ATTEMPTS))):
        name = f"{stem}-{one.partition('-')[2][:8]}"
        if not queries.has_output_name(tx, name):
            return name
    msg = f"no free output name for {stem}"
    raise AssertionError(msg)


def list_warnings(request: JobRequest, *, n_evals: int) -> Iterable[Warn]:
    """Tell what of a request that is right has no effect."""
    if request.unknown_fields:
        yield Warn(
            message=f"The request has fields that this server does not know, and ignored: {request.describe_unknown()}",
            data={},
        )
    if request.validation_file and n_evals == 0:
        yield Warn(
            message="The validation file is not used: n_evals is 0", data={"file_id": str(request.validation_file)}
        )


def advance_pending(tx: Session, job_id: str, *, policy: Policy, now: datetime) -> bool:
    """Move a pending job on if what it waited for is there: to queued, or to its end. False: nothing moved.

    A price that turns out to be more than may be spent ends the job, told by ``billing_limit``.
    """
    job = queries.lock_job(tx, job_id)
    if job is None or job.state != "pending":
        return False
    return _advance(tx, job, policy, now=now)


def _advance(tx: Session, job: Job, policy: Policy, *, is_new: bool = False, now: datetime) -> bool:
    standing = readiness.assess(tx, _plan(job, policy, is_new=is_new), now=now)
    match standing:
        case Wait():
            job.waiting_for = standing.message
            job.training_file_lines = standing.training_file_lines or job.training_file_lines
            job.train_tokenization = standing.train_tokenization
            job.validation_tokenization = standing.validation_tokenization
            return False
        case Refusal():
            _refuse(tx, job, standing, now=now)
        case Ready():
            _sell(tx, job, standing, policy, is_new=is_new, now=now)
    return True


def _sell(tx: Session, job: Job, ready: Ready, policy: Policy, *, is_new: bool, now: datetime) -> None:
    """Hold the price and queue the job. Raises PaymentRequired for a new one; one that was accepted before ends."""
    try:
        held = funds.hold(tx, _describe_purchase(tx, job, ready.quote), policy=policy, now=now)
    except PaymentRequired as refusal:
        if is_new:
            raise
        endings.stop_for_funds(tx, job, refusal, now=now)
        return
    _queue(tx, job, ready, now=now)
    endings.tell_alerts(tx, job.id, held.alerts, policy, now=now)


def _describe_purchase(tx: Session, job: Job, quote: Quote) -> Purchase:
    resolved = msgspec.convert(job.hyperparameters, Hyperparameters)
    return Purchase(
        job_id=job.id,
        organization_id=accounts.get_organization_id(tx, job.project_id),
        project_id=job.project_id,
        api_key_id=job.api_key_id,
        base_model=job.base_model,
        method="sft",
        training_type=readiness.name_training_type(resolved),
        billed_tokens=quote.billed_tokens,
        rate_nanos=quote.rate_nanos,
        price_nanos=quote.price_nanos,
        price_version=quote.price_version,
        currency=quote.currency,
    )


def _plan(job: Job, policy: Policy, *, is_new: bool) -> Plan:
    resolved = msgspec.convert(job.hyperparameters, Hyperparameters)
    return Plan(
        project_id=job.project_id,
        base_model=job.base_model,
        training_file_id=job.training_file_id,
        validation_file_id=job.validation_file_id if resolved.n_evals else None,
        hyperparameters=resolved,
        prices=policy.prices,
        retry_model=is_new,
        retry_counts=job.train_tokenization is None,
    )


def _queue(tx: Session, job: Job, ready: Ready, *, now: datetime) -> None:
    quote = ready.quote
    job.waiting_for = None
    job.base_model_revision = ready.base_model_revision
    job.training_file_lines = ready.training_file_lines
    job.train_tokenization = ready.train_tokenization
    job.validation_tokenization = ready.validation_tokenization
    job.train_tokens = quote.train_tokens
    job.validation_tokens = quote.validation_tokens
    job.billed_tokens = quote.billed_tokens
    job.rate_nanos = quote.rate_nanos
    job.price_nanos = quote.price_nanos
    job.price_version = quote.price_version
    job.currency = quote.currency
    tx.flush()
    for warning in ready.warnings:
        log.append(tx, job.id, "warning", warning.message, now=now, level="warning", data=warning.data)
    n_evals = job.hyperparameters["n_evals"]
    if quote.evaluations < n_evals:
        log.append(
            tx,
            job.id,
            "warning",
            f"n_evals is {n_evals}, but a job is evaluated at most once a step: "
            f"this one has {quote.total_steps}, and is evaluated and billed {quote.evaluations} times",
            now=now,
            level="warning",
            data={"param": "n_evals"},
        )
    price = format_money(quote.price_nanos, quote.currency)
    moves.advance(
        tx,
        job,
        "queued",
        f"Job queued; the price is {price} for {quote.billed_tokens:,} tokens, and is held until the job ends",
        now=now,
        data={"token_count": quote.billed_tokens, "price_nanos": quote.price_nanos},
    )


def _refuse(tx: Session, job: Job, refusal: Refusal, *, now: datetime) -> None:
    job.error_kind = refusal.kind
    job.error_message = refusal.message
    data: dict[str, object] = {"hint": refusal.hint} if refusal.hint else {}
    message = moves.describe_failure(refusal.message, refusal.hint)
    state: states.State = "user_error" if refusal.fault == "user" else "error"
    moves.finish(tx, job, state, message, charged_nanos=0, now=now, data=data)


def estimate(
    tx: Session,
    principal: Principal,
    request: JobRequest,
    *,
    policy: Policy,
    now: datetime,
    has_asked: bool = False,
) -> Estimate:
    """Return the exact price of a job that runs to its end, asking for what it takes to know it.

    Only the fields that a price depends on are judged. Whoever asks again until the price is there says
    ``has_asked`` from the second time on, and is then told what failed. Raises as ``create`` does.
    """
    priced = request.keep_priced_fields()
    resolved = resolve(tx, priced)
    project_id = principal.project_id
    training_file = files.get_file(tx, project_id, str(priced.training_file))
    validation_id = str(priced.validation_file) if priced.validation_file and resolved.n_evals else None
    if validation_id is not None:
        files.get_file(tx, project_id, validation_id)
    plan = Plan(
        project_id=project_id,
        base_model=str(priced.model),
        training_file_id=training_file.id,
        validation_file_id=validation_id,
        hyperparameters=resolved,
        prices=policy.prices,
        retry_model=not has_asked,
        retry_counts=not has_asked,
    )
    match readiness.assess(tx, plan, now=now):
        case Ready(quote=quote):
            return Estimate(status="ready", quote=quote)
        case Wait(message=message, reason=reason):
            return Estimate(status="waiting", message=f"Waiting for {message}", reason=reason)
        case Refusal(message=message, hint=hint, reason=reason):
            return Estimate(status="impossible", message=message, hint=hint, reason=reason)


def get_job(tx: Session, project_id: str, job_id: str, *, now: datetime | None = None) -> JobView:
    """Return one job. With ``now``, ``why`` also tells when no supervisor is alive. Raises NotFound."""
    return _view(tx, _get_row(tx, project_id, job_id), _look_around(tx, now))


def list_jobs(
    tx: Session, project_id: str, *, limit: int | None = None, after: str | None = None, now: datetime | None = None
) -> list[JobView]:
    """Return a project's jobs, oldest first, from the one after the job ``after`` on. Raises NotFound for that one."""
    start = None if after is None else _get_row(tx, project_id, after)
    rows = queries.list_jobs(tx, project_id, limit=limit, after=start)
    is_any_queued = any(row.state == "queued" for row in rows)
    positions = queries.list_queue_positions(tx, project_id) if is_any_queued else {}
    surroundings = _look_around(tx, now)
    return [_describe(row, surroundings, queue_depth=positions.get(row.id)) for row in rows]


def list_pending(tx: Session) -> list[str]:
    """Return the ids of all jobs that are not priced yet, oldest first."""
    return list(queries.list_ids_in_state(tx, "pending"))


def count_by_state(tx: Session) -> dict[states.State, int]:
    """Count the jobs that are not over, by state."""
    return queries.count_by_state(tx, states.LIVE)


def find_live_job_using_file(tx: Session, file_id: str) -> str | None:
    """Return the id of a job that is not over and needs the file."""
    return queries.find_live_job_using_file(tx, file_id)


def list_forgotten(tx: Session, job_ids: Collection[str], *, deleted_before: datetime) -> set[str]:
    """Return which of the jobs were deleted before a moment and are over: nobody asks for what they made any more."""
    return queries.list_ended_before(tx, job_ids, deleted_before)


def list_tokenizations_in_use(tx: Session) -> set[str]:
    """Return the keys of the tokenizations that jobs which are not over are made of."""
    return queries.list_tokenizations_in_use(tx)


def find_live_job_using_model(tx: Session, name: str) -> str | None:
    """Return the id of a job, of any project, that is not over and needs the base model."""
    return queries.find_live_job_using_model(tx, name)


def find_base_model(tx: Session, project_id: str, name: str) -> str | None:
    """Return the base model of a job, named by its id or by its output model; None when there is no such job."""
    job = queries.find_job(tx, project_id, name) or queries.find_job_by_output_name(tx, project_id, name)
    return None if job is None else job.base_model


def cancel(tx: Session, project_id: str, job_id: str, *, now: datetime) -> JobView:
    """Cancel a job: at once when no worker has it, else as soon as its worker has ended. Twice is as good as once.

    Raises InvalidRequest when the job is over.
    """
    job = _lock_row(tx, project_id, job_id)
    if job.state in states.TERMINAL:
        raise InvalidRequest(
            "job_is_over",
            f"job {job.id} cannot be cancelled: it is {job.state}",
            hint="only a job that is not over can be cancelled",
        )
    endings.cancel(tx, job, "Cancellation requested", now=now)
    return _view(tx, job, Surroundings())


def delete(tx: Session, project_id: str, job_id: str, *, force: bool, now: datetime) -> None:
    """Delete a job. A live one is cancelled first, if ``force`` allows it. Raises Conflict, NotFound."""
    job = _lock_row(tx, project_id, job_id)
    if job.state in states.LIVE:
        if not force:
            raise Conflict(
                "job_is_live",
                f"job {job.id} is {job.state}",
                hint="cancel it first, or delete it with force=true",
            )
        endings.cancel(tx, job, "Cancellation requested", now=now)
    job.deleted_at = now
    job.updated_at = now


def _get_row(tx: Session, project_id: str, job_id: str) -> Job:
    job = queries.find_job(tx, project_id, job_id)
    if job is None:
        raise _unknown_job(job_id)
    return job


def _lock_row(tx: Session, project_id: str, job_id: str) -> Job:
    job = queries.lock_job(tx, job_id)
    if job is None or job.project_id != project_id or job.deleted_at is not None:
        raise _unknown_job(job_id)
    return job


def _unknown_job(job_id: str) -> NotFound:
    return NotFound(
        "job_not_found",
        f"there is no job {job_id} in this project",
        hint="luthier ft list shows the project's jobs",
        param="id",
    )


def _look_around(tx: Session, now: datetime | None) -> Surroundings:
    return Surroundings() if now is None else Surroundings(supervisors.list_alive(tx, now=now))


def _view(tx: Session, job: Job, surroundings: Surroundings) -> JobView:
    queue_depth = queries.count_ahead(tx, job) if job.state == "queued" else None
    return _describe(job, surroundings, queue_depth=queue_depth)


_COPIED = tuple(
    name
    for name in JobView.__dataclass_fields__
    if name not in {"state", "why", "queue_depth", "hyperparameters", "request"}
)


def _describe(job: Job, surroundings: Surroundings, *, queue_depth: int | None) -> JobView:
    copied: Mapping[str, object] = {name: getattr(job, name) for name in _COPIED}
    return JobView(
        state=states.parse(job.state),
        why=explain(job, surroundings, queue_depth=queue_depth),
        queue_depth=queue_depth,
        hyperparameters=msgspec.convert(job.hyperparameters, Hyperparameters),
        request=job.request,
        **copied,  # type: ignore[arg-type]  # the view's fields are the row's columns of the same names
    )
