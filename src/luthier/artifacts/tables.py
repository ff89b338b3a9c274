"""Table of archives: the checkpoints and output models that can be downloaded."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from luthier.db import Base


class Artifact(Base):
    """One downloadable archive (.tar.zst) of a job. The bytes are in the store before the row exists.

    ``kind``: adapter, merged or model. ``is_final``: an output of the finished job, rather than an
    intermediate checkpoint.
    """

    __tablename__ = "artifacts"
    __table_args__ = (sa.UniqueConstraint("job_id", "step", "kind", "is_final"), {"sqlite_strict": True})

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(index=True)
    step: Mapped[int]
    kind: Mapped[str]
    is_final: Mapped[int]
    object_key: Mapped[str]
    size_bytes: Mapped[int]
    sha256: Mapped[str]
    weights_sha256: Mapped[str | None]
    created_at: Mapped[datetime]
