"""Every statement on the table of artifacts, named."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from luthier.artifacts.tables import Artifact
from luthier.db import Session


def find_artifact(tx: Session, *, job_id: str, step: int, kind: str, is_final: bool) -> Artifact | None:
    """Read the artifact of this step and kind."""
    statement = sa.select(Artifact).where(
        Artifact.job_id == job_id, Artifact.step == step, Artifact.kind == kind, Artifact.is_final == int(is_final)
    )
    return tx.execute(statement).scalar_one_or_none()


def delete_artifacts(tx: Session, job_ids: Collection[str]) -> None:
    """Remove the jobs' artifacts."""
    tx.execute(sa.delete(Artifact).where(Artifact.job_id.in_(job_ids)))


def list_artifacts(tx: Session, project_id: str, job_id: str) -> Sequence[Artifact]:
    """Read a job's artifacts by step, intermediate before final."""
    statement = (
        sa.select(Artifact)
        .where(Artifact.job_id == job_id, Artifact.project_id == project_id)
        .order_by(Artifact.step, Artifact.is_final, Artifact.kind)
    )
    return tx.execute(statement).scalars().all()
