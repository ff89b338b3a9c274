"""API keys of a project: an admin key makes, lists and revokes them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from luthier.accounts import service as accounts
from luthier.accounts.service import KeyView
from luthier.api.auth import AdminParam
from luthier.api.context import ServicesParam

router = APIRouter(prefix="/api/keys", tags=["keys"])


class KeyRequest(BaseModel):
    """What a new key is for."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Who or what will use it")
    is_admin: bool = Field(default=False, description="May make and revoke keys")
    expires_at: AwareDatetime | None = Field(default=None, description="When it ends by itself; never, when left out")


class KeyResponse(BaseModel):
    """A key without its secret."""

    id: str
    object: str = "api_key"
    name: str
    hint: str = Field(description="The key's first characters, to recognise it by")
    is_admin: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewKeyResponse(KeyResponse):
    """A key that was made just now."""

    secret: str = Field(description="The key itself: shown this once, kept nowhere")


class KeyList(BaseModel):
    """All keys of the project, oldest first."""

    object: str = "list"
    data: list[KeyResponse]


@router.post("", status_code=201)
def create_key(body: KeyRequest, principal: AdminParam, services: ServicesParam) -> NewKeyResponse:
    """Make a key for the caller's project."""
    with services.database.transaction() as tx:
        key, secret = accounts.create_key(
            tx,
            project_id=principal.project_id,
            name=body.name,
            is_admin=body.is_admin,
            expires_at=body.expires_at,
            master_key=services.master_key,
            now=services.clock.now(),
        )
    return NewKeyResponse(**_fields(key), secret=secret)


@router.get("")
def list_keys(principal: AdminParam, services: ServicesParam) -> KeyList:
    """List the project's keys, revoked and expired ones too."""
    with services.database.read() as tx:
        keys = accounts.list_keys(tx, principal.project_id)
    return KeyList(data=[KeyResponse(**_fields(key)) for key in keys])


@router.delete("/{key_id}")
def revoke_key(key_id: str, principal: AdminParam, services: ServicesParam) -> KeyResponse:
    """Revoke a key at once and for good."""
    with services.database.transaction() as tx:
        key = accounts.revoke_key(tx, principal.project_id, key_id, now=services.clock.now())
    return KeyResponse(**_fields(key))


def _fields(key: KeyView) -> dict[str, Any]:
    return {name: value for name, value in asdict(key).items() if name != "project_id"}
