"""Fine-tuning jobs in the Together dialect."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request
from fastapi.concurrency import run_in_threadpool

from luthier.accounts.service import Principal
from luthier.api.auth import PrincipalParam
from luthier.api.context import Services, ServicesParam
from luthier.api.request_schema import EstimateBody, JobBody, JsonBody, document_body
from luthier.api.together import jobs_view as view
from luthier.api.together.dialect import DialectParam
from luthier.api.together.files import require_space
from luthier.api.together.metric_filter import MetricFilterParam
from luthier.artifacts import service as artifacts
from luthier.billing import funds
from luthier.billing.funds import Room
from luthier.billing.money import NANOS_A_UNIT
from luthier.billing.policy import Policy
from luthier.errors import InvalidRequest, Unavailable
from luthier.jobs import log
from luthier.jobs import service as jobs
from luthier.jobs.request import JobRequest
from luthier.jobs.schemas import Estimate, JobView

ESTIMATE_PAUSES_S = (0.1, 0.2, 0.5)  # the last one repeats: tokenising takes from half a second to minutes
ESTIMATE_RETRY_AFTER_S = 5

router = APIRouter(prefix="/v1/fine-tunes", tags=["fine-tuning"])


class Deleted(view.WireModel):
    """What was deleted."""

    message: str


class PriceEstimate(view.WireModel):
    """The price of a job that runs to its end, in dollars; it is the final price.

    ``user_limit`` is what may be spent now, and ``allowed_to_proceed`` whether a job of this price would be accepted.
    The numbers are there in any case, because older clients require them; without an estimate they are 0.
    """

    estimation_available: bool
    unavailable_reason: str | None = None
    estimated_total_price: float = 0.0
    estimated_train_token_count: int = 0
    estimated_eval_token_count: int = 0
    allowed_to_proceed: bool = True
    user_limit: float = 0.0
    currency: str = "USD"


@router.post("", response_model_exclude_unset=True, openapi_extra=document_body(JobBody))
async def create_job(
    request: Request,
    principal: PrincipalParam,
    services: ServicesParam,
    background: BackgroundTasks,
    *,
    body: JsonBody,
    idempotency_key: Annotated[str | None, Header()] = None,
    x_stainless_retry_count: Annotated[int, Header(include_in_schema=False)] = 0,
) -> view.Job:
    """Start a fine-tuning job; the same request repeated, because its answer was lost, starts no second one."""
    create = functools.partial(
        _create,
        services,
        principal,
        JobRequest.from_body(body),
        idempotency_key=idempotency_key,
        is_retry=x_stainless_retry_count > 0,
    )
    job = await run_in_threadpool(create)
    if not await request.is_disconnected():  # a caller who is gone has not had the answer, and may ask again
        background.add_task(_confirm_delivered, services, job.id)  # runs once the answer has left
    return view.describe_job(job)


def _create(
    services: Services, principal: Principal, request: JobRequest, *, idempotency_key: str | None, is_retry: bool
) -> JobView:
    require_space(services, 0)
    now = services.clock.now()
    with services.database.transaction() as tx:
        return jobs.create(
            tx,
            principal,
            request,
            policy=services.policy,
            now=now,
            idempotency_key=idempotency_key,
            is_retry=is_retry,
        )


def _confirm_delivered(services: Services, job_id: str) -> None:
    with services.database.transaction() as tx:
        jobs.confirm_delivered(tx, job_id, now=services.clock.now())


@router.get("", response_model_exclude_unset=True)
def list_jobs(
    principal: PrincipalParam,
    services: ServicesParam,
    limit: Annotated[int | None, Query(ge=1, le=1000)] = None,
    after: Annotated[str | None, Query(description="Id of the last job that was received")] = None,
) -> view.JobList:
    """List the project's jobs, oldest first."""
    with services.database.read() as tx:
        found = jobs.list_jobs(tx, principal.project_id, limit=limit, after=after, now=services.clock.now())
    return view.JobList(object="list", data=[view.describe_job(job) for job in found])


@router.post("/estimate-price", response_model_exclude_none=True, openapi_extra=document_body(EstimateBody))
async def estimate_price(principal: PrincipalParam, services: ServicesParam, body: JsonBody) -> PriceEstimate:
    """Tell what a job would cost; waits a while for the file to be checked and its tokens counted."""
    estimate = await _wait_for_estimate(services, principal, JobRequest.from_body(body))
    if estimate.quote is not None or estimate.reason is not None:
        room = await run_in_threadpool(_find_room, services, principal)
        return _describe_estimate(estimate, room, services.policy)
    raise InvalidRequest("estimate_impossible", estimate.message or "there is no price", hint=estimate.hint)


def _describe_estimate(estimate: Estimate, room: Room, policy: Policy) -> PriceEstimate:
    quote = estimate.quote
    funds_nanos = room.available_nanos + room.credit_limit_nanos
    may_begin = funds_nanos >= policy.minimum_nanos and (quote is None or quote.price_nanos <= room.spendable_nanos)
    allowed, user_limit = may_begin or not policy.enabled, room.spendable_nanos / NANOS_A_UNIT
    if quote is None:
        return PriceEstimate(
            estimation_available=False,
            unavailable_reason=estimate.reason,
            allowed_to_proceed=allowed,
            user_limit=user_limit,
            currency=policy.currency,
        )
    eval_tokens = quote.evaluations * quote.validation_tokens
    return PriceEstimate(
        allowed_to_proceed=allowed,
        user_limit=user_limit,
        currency=quote.currency,
        estimation_available=True,
        estimated_total_price=quote.price_nanos / NANOS_A_UNIT,
        estimated_train_token_count=quote.billed_tokens - eval_tokens,
        estimated_eval_token_count=eval_tokens,
    )


async def _wait_for_estimate(services: Services, principal: Principal, request: JobRequest) -> Estimate:
    """Ask until there is an answer, or for ``estimate_wait_s``. No session is held while waiting.

    Then a file that is still being checked is an answer, with the wire's own word; for everything else
    raises Unavailable, with what is waited for.
    """
    deadline = time.monotonic() + services.settings.estimate_wait_s
    pauses = list(ESTIMATE_PAUSES_S)
    has_asked = False
    while True:
        estimate = await run_in_threadpool(_estimate, services, principal, request, has_asked=has_asked)
        has_asked = True  # what fails from now on is told, not tried again
        if estimate.status != "waiting":
            return estimate
        pause_s = pauses.pop(0) if len(pauses) > 1 else pauses[0]
        if time.monotonic() + pause_s > deadline:
            if estimate.reason is not None:
                return estimate
            raise Unavailable(
                "estimate_not_ready",
                estimate.message or "the price is not known yet",
                hint=estimate.hint or "ask again, or create the job: it is priced before it trains",
                retry_after_s=ESTIMATE_RETRY_AFTER_S,
            )
        await asyncio.sleep(pause_s)


def _estimate(services: Services, principal: Principal, request: JobRequest, *, has_asked: bool) -> Estimate:
    with services.database.transaction() as tx:
        return jobs.estimate(
            tx, principal, request, policy=services.policy, now=services.clock.now(), has_asked=has_asked
        )


def _find_room(services: Services, principal: Principal) -> Room:
    with services.database.read() as tx:
        return funds.get_room(
            tx,
            organization_id=principal.organization_id,
            project_id=principal.project_id,
            api_key_id=principal.api_key_id,
            policy=services.policy,
            now=services.clock.now(),
        )


@router.get("/{job_id}", response_model_exclude_unset=True)
def get_job(principal: PrincipalParam, services: ServicesParam, dialect: DialectParam, job_id: str) -> view.Job:
    """Show one job with its events."""
    with services.database.read() as tx:
        job = jobs.get_job(tx, principal.project_id, job_id, now=services.clock.now())
        events = log.list_events(tx, job.id)
    return view.describe_job(job, [view.describe_event(job.id, event, dialect) for event in events])


@router.delete("/{job_id}")
def delete_job(
    principal: PrincipalParam, services: ServicesParam, job_id: str, *, force: Annotated[bool, Query()] = False
) -> Deleted:
    """Delete a job; one that is not over needs ``force``, which cancels it first."""
    with services.database.transaction() as tx:
        jobs.delete(tx, principal.project_id, job_id, force=force, now=services.clock.now())
    return Deleted(message=f"Deleted fine-tuning job {job_id}")


@router.post("/{job_id}/cancel", response_model_exclude_unset=True)
def cancel_job(principal: PrincipalParam, services: ServicesParam, job_id: str) -> view.Job:
    """Cancel a job; the step that runs is finished first."""
    with services.database.transaction() as tx:
        job = jobs.cancel(tx, principal.project_id, job_id, now=services.clock.now())
    return view.describe_job(job)


@router.get("/{job_id}/events")
def list_events(
    principal: PrincipalParam, services: ServicesParam, dialect: DialectParam, job_id: str
) -> view.EventList:
    """List a job's events, oldest first."""
    with services.database.read() as tx:
        job = jobs.get_job(tx, principal.project_id, job_id)
        events = log.list_events(tx, job.id)
    return view.EventList(data=[view.describe_event(job.id, event, dialect) for event in events])


@router.get("/{job_id}/checkpoints")
def list_checkpoints(principal: PrincipalParam, services: ServicesParam, job_id: str) -> view.CheckpointList:
    """List the archives of a job that can be downloaded, by step."""
    with services.database.read() as tx:
        job = jobs.get_job(tx, principal.project_id, job_id)
        found = artifacts.list_for_job(tx, principal.project_id, job.id)
    return view.CheckpointList(data=[view.describe_checkpoint(one, job.output_name) for one in found])


@router.get("/{job_id}/metrics")
def list_metrics(
    principal: PrincipalParam, services: ServicesParam, job_id: str, wanted: MetricFilterParam
) -> view.MetricList:
    """List a job's metrics in the order in which they were logged."""
    with services.database.read() as tx:
        job = jobs.get_job(tx, principal.project_id, job_id)
        found = log.list_metrics(
            tx,
            job.id,
            step_from=wanted.global_step_from,
            step_to=wanted.global_step_to,
            logged_from=wanted.logged_at_from,
            logged_to=wanted.logged_at_to,
        )
    if wanted.resolution is not None:
        found = view.sample_metrics(found, wanted.resolution)
    return view.MetricList(metrics=view.describe_metrics(found))
