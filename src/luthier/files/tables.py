"""Tables of uploads and files. A file row exists only once its bytes are in the store."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from luthier.db import Base
from luthier.db.orm import Json


class Upload(Base):
    """Leave to send one file's bytes: signed, expiring, good once. ``id`` becomes the file's id."""

    __tablename__ = "uploads"
    __table_args__ = ({"sqlite_strict": True},)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"), index=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    file_type: Mapped[str]
    sha256: Mapped[str | None]  # as the client announced it
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    used_at: Mapped[datetime | None]


class File(Base):
    """A file whose bytes are kept. ``processing_status`` as in the API; PENDING: its validation was never asked for."""

    __tablename__ = "files"
    __table_args__ = (
        sa.Index("ix_files_project_created", "project_id", "created_at"),
        sa.Index("ix_files_status", "processing_status"),
        {"sqlite_strict": True},
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    file_type: Mapped[str]
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(index=True)
    object_key: Mapped[str]
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]  # set first; a sweep removes the bytes once nothing uses them

    processing_status: Mapped[str]
    claimed_until: Mapped[datetime | None]  # a validation is under way until then
    attempts: Mapped[int] = mapped_column(server_default=sa.text("0"))
    claim_number: Mapped[int] = mapped_column(server_default=sa.text("0"))  # of the last claim: earlier ones are void
    line_count: Mapped[int | None]
    report: Mapped[Any | None] = mapped_column(Json)  # datasets.report.Report, as JSON
