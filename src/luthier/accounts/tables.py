"""Tables of organizations, projects and API keys."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from luthier.db import Base


class Installation(Base):
    """One row: the master key that this database was set up with, by its fingerprint."""

    __tablename__ = "installation"
    __table_args__ = (sa.CheckConstraint("id = 1", name="single"), {"sqlite_strict": True})

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    master_key_fingerprint: Mapped[str]
    created_at: Mapped[datetime]


class Organization(Base):
    """Who pays."""

    __tablename__ = "organizations"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[datetime]


class Project(Base):
    """What files and jobs belong to. The slug opens the names of output models."""

    __tablename__ = "projects"
    __table_args__ = (sa.UniqueConstraint("slug"), {"sqlite_strict": True})

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    name: Mapped[str]
    slug: Mapped[str]
    created_at: Mapped[datetime]


class ApiKey(Base):
    """An API key, of which only a keyed hash is kept. ``hint`` is its first characters, to recognise it by."""

    __tablename__ = "api_keys"
    __table_args__ = (sa.UniqueConstraint("secret_hash"), {"sqlite_strict": True})

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    hint: Mapped[str]
    secret_hash: Mapped[bytes]
    is_admin: Mapped[int]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
