"""The questions that accounts ask the database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from luthier.accounts.tables import ApiKey, Installation, Organization, Project
from luthier.db import Session


def has_organization(tx: Session) -> bool:
    """Tell whether the first start has been."""
    return tx.execute(sa.select(Organization.id).limit(1)).first() is not None


def find_installation(tx: Session) -> Installation | None:
    """Return what this database was set up with."""
    return tx.execute(sa.select(Installation)).scalar_one_or_none()


def get_first_project_id(tx: Session) -> str:
    """Return the oldest project, which the first start made."""
    return tx.execute(sa.select(Project.id).order_by(Project.created_at, Project.id).limit(1)).scalar_one()


def get_organization_id(tx: Session, project_id: str) -> str:
    """Return whose project it is."""
    return tx.execute(sa.select(Project.organization_id).where(Project.id == project_id)).scalar_one()


def list_organizations(tx: Session) -> Sequence[Organization]:
    """Return every organization, oldest first."""
    return tx.execute(sa.select(Organization).order_by(Organization.created_at, Organization.id)).scalars().all()


def find_owner_of_slug(tx: Session, slug: str) -> str | None:
    """Return whose the project with this slug is."""
    return tx.execute(sa.select(Project.organization_id).where(Project.slug == slug)).scalar_one_or_none()


def list_projects(tx: Session, organization_id: str) -> Sequence[Project]:
    """Return an organization's projects, oldest first."""
    statement = sa.select(Project).where(Project.organization_id == organization_id)
    return tx.execute(statement.order_by(Project.created_at, Project.id)).scalars().all()


def list_organization_keys(tx: Session, organization_id: str) -> Sequence[ApiKey]:
    """Return the keys of all of an organization's projects, oldest first."""
    statement = (
        sa.select(ApiKey)
        .join(Project, Project.id == ApiKey.project_id)
        .where(Project.organization_id == organization_id)
        .order_by(ApiKey.created_at, ApiKey.id)
    )
    return tx.execute(statement).scalars().all()


def find_key_by_hash(tx: Session, secret_hash: bytes) -> tuple[ApiKey, Project, Organization] | None:
    """Return a key with its project and organization."""
    row = tx.execute(
        sa.select(ApiKey, Project, Organization)
        .join(Project, Project.id == ApiKey.project_id)
        .join(Organization, Organization.id == Project.organization_id)
        .where(ApiKey.secret_hash == secret_hash)
    ).first()
    if row is None:
        return None
    key, project, organization = row
    return key, project, organization


def list_keys(tx: Session, project_id: str) -> Sequence[ApiKey]:
    """Return a project's keys, oldest first."""
    return (
        tx.execute(sa.select(ApiKey).where(ApiKey.project_id == project_id).order_by(ApiKey.created_at, ApiKey.id))
        .scalars()
        .all()
    )


def find_key(tx: Session, project_id: str, key_id: str) -> ApiKey | None:
    """Return one of a project's keys."""
    return tx.execute(
        sa.select(ApiKey).where(ApiKey.project_id == project_id, ApiKey.id == key_id).with_for_update()
    ).scalar_one_or_none()


def lock_usable_admin_key_ids(tx: Session, project_id: str, now: datetime) -> Sequence[str]:
    """Return the admin keys of a project that work now; nobody else revokes one meanwhile."""
    return (
        tx.execute(
            sa.select(ApiKey.id)
            .where(
                ApiKey.project_id == project_id,
                ApiKey.is_admin == 1,
                ApiKey.revoked_at.is_(None),
                sa.or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now),
            )
            .order_by(ApiKey.id)
            .with_for_update()
        )
        .scalars()
        .all()
    )


def touch_key(tx: Session, key_id: str, now: datetime) -> None:
    """Set when a key was last used."""
    tx.execute(sa.update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now))
