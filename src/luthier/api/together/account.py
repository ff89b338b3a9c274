"""Who is asking, in the Together dialect: ``whoami`` and the list of projects."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from luthier.api.auth import PrincipalParam

router = APIRouter(tags=["account"])


class KeyIdentity(BaseModel):
    """The API key, by its id."""

    id: str


class OrganizationIdentity(BaseModel):
    """Who pays."""

    id: str
    name: str


class ProjectIdentity(BaseModel):
    """What files and jobs belong to."""

    id: str
    name: str
    slug: str


class Whoami(BaseModel):
    """The identity behind a key: nested for the newer clients, flat for the older ones."""

    type: Literal["project_api_key"] = "project_api_key"
    api_key: KeyIdentity
    organization: OrganizationIdentity
    project: ProjectIdentity
    api_key_id: str
    api_key_name: str
    organization_id: str
    organization_name: str
    project_id: str
    project_name: str
    project_slug: str


class Project(BaseModel):
    """A project that the caller can use."""

    id: str
    name: str
    slug: str
    organization_id: str
    organization_name: str


class ProjectList(BaseModel):
    """One page of projects."""

    object: Literal["list"] = "list"
    data: list[Project]
    next_cursor: str | None = None


@router.get("/v3/whoami")
@router.get("/v1/whoami")
def whoami(principal: PrincipalParam) -> Whoami:
    """Tell whose key this is."""
    return Whoami(
        api_key=KeyIdentity(id=principal.api_key_id),
        organization=OrganizationIdentity(id=principal.organization_id, name=principal.organization_name),
        project=ProjectIdentity(id=principal.project_id, name=principal.project_name, slug=principal.project_slug),
        api_key_id=principal.api_key_id,
        api_key_name=principal.api_key_name,
        organization_id=principal.organization_id,
        organization_name=principal.organization_name,
        project_id=principal.project_id,
        project_name=principal.project_name,
        project_slug=principal.project_slug,
    )


@router.get("/v1/projects")
def list_projects(
    principal: PrincipalParam,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    after: Annotated[str | None, Query()] = None,
) -> ProjectList:
    """List the projects that this key can use: a key belongs to one."""
    del limit  # one project is never more than a page
    project = Project(
        id=principal.project_id,
        name=principal.project_name,
        slug=principal.project_slug,
        organization_id=principal.organization_id,
        organization_name=principal.organization_name,
    )
    return ProjectList(data=[] if after == project.id else [project])
