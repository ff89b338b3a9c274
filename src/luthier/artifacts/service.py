"""Downloadable archives of a job. The bytes are in the store, under the name given here, before the row exists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from sqlalchemy.exc import IntegrityError

from luthier import ids
from luthier.artifacts import queries
from luthier.artifacts.tables import Artifact
from luthier.db import Session
from luthier.errors import InvalidRequest, NotFound

OBJECT_PREFIX = "artifacts/"

Kind = Literal["adapter", "merged", "model"]
Checkpoint = Literal["adapter", "merged", "model_output_path"]


@dataclass(frozen=True, kw_only=True)
class ArtifactView:
    """One archive (.tar.zst): full weights (``model``), base with adapter (``merged``), or the ``adapter`` alone."""

    id: str
    project_id: str
    job_id: str
    step: int
    kind: Kind
    is_final: bool
    object_key: str
    size_bytes: int
    sha256: str
    weights_sha256: str | None
    created_at: datetime


def name_object(job_id: str, *, step: int, kind: Kind, is_final: bool) -> str:
    """Return where the archive's bytes belong: the same for the same archive, so storing it again is harmless."""
    stage = "final" if is_final else "checkpoint"
    return f"{OBJECT_PREFIX}{job_id}/{stage}-{step:08d}-{kind}.tar.zst"


def get_job_id(object_key: str) -> str:
    """Return whose archive this is; the opposite of ``name_object``."""
    return object_key.removeprefix(OBJECT_PREFIX).partition("/")[0]


def forget(tx: Session, job_ids: Collection[str]) -> None:
    """Make the jobs' archives unknown; the caller removes the bytes once this is committed."""
    queries.delete_artifacts(tx, job_ids)


def record(
    tx: Session,
    *,
    project_id: str,
    job_id: str,
    step: int,
    kind: Kind,
    is_final: bool,
    object_key: str,
    size_bytes: int,
    sha256: str,
    weights_sha256: str | None,
    now: datetime,
) -> ArtifactView:
    """Make an archive known whose bytes are in the store; the same again changes nothing."""
    row = queries.find_artifact(tx, job_id=job_id, step=step, kind=kind, is_final=is_final)
    if row is None:
        fresh = Artifact(
            id=ids.new_id("art"),
            project_id=project_id,
            job_id=job_id,
            step=step,
            kind=kind,
            is_final=int(is_final),
            object_key=object_key,
            size_bytes=size_bytes,
            sha256=sha256,
            weights_sha256=weights_sha256,
            created_at=now,
        )
        row = _insert(tx, fresh)
    return _view(row)


def _insert(tx: Session, fresh: Artifact) -> Artifact:
    try:
        with tx.begin_nested():
            tx.add(fresh)
    except IntegrityError:  # another transaction recorded it meanwhile (PostgreSQL)
        row = queries.find_artifact(
            tx, job_id=fresh.job_id, step=fresh.step, kind=fresh.kind, is_final=bool(fresh.is_final)
        )
        assert row is not None, f"artifact of {fresh.job_id}, step {fresh.step}, is there and is not"
        return row
    return fresh


def list_for_job(tx: Session, project_id: str, job_id: str) -> list[ArtifactView]:
    """Return a job's archives by step, intermediate before final."""
    return [_view(row) for row in queries.list_artifacts(tx, project_id, job_id)]


def get_download(
    tx: Session, project_id: str, job_id: str, *, checkpoint: Checkpoint, step: int | None
) -> ArtifactView:
    """Return the archive that a download names; without a step, the final one.

    ``model_output_path`` is the job's main output: the full weights, which LoRA jobs have as ``merged``.
    Raises NotFound whose hint says what there is, InvalidRequest when the job never makes such an archive.
    """
    found = list_for_job(tx, project_id, job_id)
    if not found:
        raise NotFound(
            "no_checkpoint",
            f"job {job_id} has no checkpoint yet",
            hint="wait for its first checkpoint_save event, or for job_complete",
        )
    _require_possible(found, job_id, checkpoint)
    kinds = {"model", "merged"} if checkpoint == "model_output_path" else {checkpoint}
    at_step = [one for one in found if one.kind in kinds and (one.is_final if step is None else one.step == step)]
    if not at_step:
        wanted = "a final" if step is None else f"step {step}'s"
        raise NotFound(
            "checkpoint_not_found",
            f"job {job_id} has not {wanted} {checkpoint} archive",
            hint=f"there is: {_describe(found)}",
            param="checkpoint" if step is None else "checkpoint_step",
        )
    return at_step[-1]  # the final one, where the last step has both


def _require_possible(found: Sequence[ArtifactView], job_id: str, checkpoint: Checkpoint) -> None:
    has_full_weights = any(one.kind == "model" for one in found)
    if has_full_weights and checkpoint != "model_output_path":
        raise InvalidRequest(
            "wrong_checkpoint_type",
            f"job {job_id} trained all weights, so it has no {checkpoint} archive",
            hint="ask for checkpoint=model_output_path",
            param="checkpoint",
        )


def _describe(found: Sequence[ArtifactView]) -> str:
    return ", ".join(f"{one.kind} of step {one.step}{' (final)' if one.is_final else ''}" for one in found)


def _view(row: Artifact) -> ArtifactView:
    return ArtifactView(
        id=row.id,
        project_id=row.project_id,
        job_id=row.job_id,
        step=row.step,
        kind=cast("Kind", row.kind),
        is_final=bool(row.is_final),
        object_key=row.object_key,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        weights_sha256=row.weights_sha256,
        created_at=row.created_at,
    )
