"""Our own view of a job: all that is known, with exact money and the archives; and what a request would make."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from luthier.api import hyperparameters
from luthier.api.auth import PrincipalParam
from luthier.api.context import ServicesParam
from luthier.api.hyperparameters import Hyperparameters
from luthier.api.request_schema import JobBody, JsonBody, document_body
from luthier.api.times import Time
from luthier.artifacts import service as artifacts
from luthier.artifacts.service import ArtifactView
from luthier.jobs import service as jobs
from luthier.jobs.request import JobRequest
from luthier.jobs.schemas import JobView
from luthier.jobs.states import State

router = APIRouter(prefix="/api/fine-tunes", tags=["fine-tuning"])


class JobState(BaseModel):
    """What changes while a job lives; the stream sends it at each change. ``why`` says in a sentence what goes on."""

    id: str
    status: State
    why: str
    queue_depth: int | None
    started_at: Time | None
    finished_at: Time | None
    step: int
    total_steps: int | None
    epochs_completed: int
    tokens_done: int
    seconds_remaining: float | None
    price_nanos: int | None
    charged_nanos: int | None
    error_kind: str | None
    error_message: str | None


class Archive(BaseModel):
    """A downloadable archive. ``kind``: adapter, merged or model."""

    id: str
    step: int
    kind: str
    is_final: bool
    size_bytes: int
    sha256: str
    weights_sha256: str | None
    created_at: Time


class JobAnswer(JobState):
    """One job in full. Money is in nano-dollars: ``price_nanos`` was quoted, ``charged_nanos`` is the final price."""

    model_config = ConfigDict(protected_namespaces=())

    created_at: Time
    updated_at: Time
    cancel_requested_at: Time | None
    heard_at: Time | None
    base_model: str
    output_name: str
    suffix: str | None
    training_file: str
    training_file_bytes: int
    training_file_lines: int | None
    validation_file: str | None
    hyperparameters: dict[str, Any]
    request: dict[str, Any]
    train_tokens: int | None
    validation_tokens: int | None
    billed_tokens: int | None
    rate_nanos: int | None
    param_count: int | None
    trainable_param_count: int | None
    artifacts: list[Archive]


class ResolvedRequest(BaseModel):
    """What a job of a request would be made with. ``warnings`` tell what has no effect, a sentence each."""

    model: str
    suffix: str | None
    hyperparameters: Hyperparameters
    warnings: list[str]


@router.post("/resolve", response_model_exclude_unset=True, openapi_extra=document_body(JobBody))
def resolve_request(principal: PrincipalParam, services: ServicesParam, body: JsonBody) -> ResolvedRequest:
    """Judge a request as a create would, and fill in every default; nothing is created.

    Files are not looked at, so they need not be uploaded yet: ``training_file`` and ``validation_file`` may be any
    name. All that is wrong is told at once, in ``details``.
    """
    del principal
    request = JobRequest.from_body(body)
    with services.database.read() as tx:
        resolved = jobs.resolve(tx, request)
    return ResolvedRequest(
        model=str(request.model),
        suffix=str(request.suffix) if request.suffix else None,
        hyperparameters=Hyperparameters.model_validate(hyperparameters.describe(resolved)),
        warnings=[warning.message for warning in jobs.list_warnings(request, n_evals=resolved.n_evals)],
    )


@router.get("/{job_id}")
def get_job(principal: PrincipalParam, services: ServicesParam, job_id: str) -> JobAnswer:
    """Show one job in full."""
    with services.database.read() as tx:
        job = jobs.get_job(tx, principal.project_id, job_id, now=services.clock.now())
        found = artifacts.list_for_job(tx, principal.project_id, job.id)
    return _describe_job(job, found)


def describe_state(job: JobView) -> JobState:
    """Return what the stream sends of a job."""
    return JobState(**_list_state_fields(job))


def _list_state_fields(job: JobView) -> dict[str, Any]:
    names = [name for name in JobState.model_fields if name != "status"]
    return {"status": job.state, **{name: getattr(job, name) for name in names}}


def _describe_job(job: JobView, found: list[ArtifactView]) -> JobAnswer:
    return JobAnswer(
        **_list_state_fields(job),
        created_at=job.created_at,
        updated_at=job.updated_at,
        cancel_requested_at=job.cancel_requested_at,
        heard_at=job.heard_at,
        base_model=job.base_model,
        output_name=job.output_name,
        suffix=job.suffix,
        training_file=job.training_file_id,
        training_file_bytes=job.training_file_bytes,
        training_file_lines=job.training_file_lines,
        validation_file=job.validation_file_id,
        hyperparameters=msgspec.to_builtins(job.hyperparameters),
        request=dict(job.request),
        train_tokens=job.train_tokens,
        validation_tokens=job.validation_tokens,
        billed_tokens=job.billed_tokens,
        rate_nanos=job.rate_nanos,
        param_count=job.param_count,
        trainable_param_count=job.trainable_param_count,
        artifacts=[_describe_archive(one) for one in found],
    )


def _describe_archive(archive: ArtifactView) -> Archive:
    return Archive(
        id=archive.id,
        step=archive.step,
        kind=archive.kind,
        is_final=archive.is_final,
        size_bytes=archive.size_bytes,
        sha256=archive.sha256,
        weights_sha256=archive.weights_sha256,
        created_at=archive.created_at,
    )
