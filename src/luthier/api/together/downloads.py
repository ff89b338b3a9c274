"""Downloads of checkpoints and output models, in the Together dialect."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from luthier.api.auth import PrincipalParam
from luthier.api.content import IfRangeParam, RangeParam, serve_object
from luthier.api.context import ServicesParam
from luthier.artifacts import service as artifacts
from luthier.artifacts.service import ArtifactView, Checkpoint
from luthier.jobs import service as jobs

# Not a tar's own type: clients take that for .tar.gz.
MEDIA_TYPE = "application/zstd"

router = APIRouter(tags=["fine-tuning"])


@router.get("/v1/finetune/download", response_class=StreamingResponse)
def download(
    principal: PrincipalParam,
    services: ServicesParam,
    *,
    ft_id: Annotated[str, Query()],
    checkpoint: Annotated[Checkpoint, Query()] = "model_output_path",
    checkpoint_step: Annotated[int | None, Query(ge=0)] = None,
    range_header: RangeParam = None,
    if_range: IfRangeParam = None,
) -> StreamingResponse:
    """Download an archive (.tar.zst): the final one, or with ``checkpoint_step`` that of a step."""
    with services.database.read() as tx:
        job = jobs.get_job(tx, principal.project_id, ft_id)
        if checkpoint_step:
            checkpoint = _fit_step(
                artifacts.list_for_job(tx, principal.project_id, job.id), checkpoint, checkpoint_step
            )
        archive = artifacts.get_download(
            tx, principal.project_id, job.id, checkpoint=checkpoint, step=checkpoint_step or None
        )
    return serve_object(
        services.store,
        archive.object_key,
        size_bytes=archive.size_bytes,
        sha256=archive.sha256,
        filename=_name_file(job.output_name, archive),
        media_type=MEDIA_TYPE,
        range_header=range_header,
        if_range=if_range,
    )


def _fit_step(found: list[ArtifactView], checkpoint: Checkpoint, step: int) -> Checkpoint:
    """Return the kind of archive that the step has: clients ask for ``merged`` with any step, and mean the step."""
    has_adapter_only = {one.kind for one in found if one.step == step} == {"adapter"}
    return "adapter" if has_adapter_only else checkpoint


def _name_file(output_name: str, archive: ArtifactView) -> str:
    """Return the model's own name, which of its archives it is, and the step of an intermediate one."""
    parts = [output_name.rpartition("/")[2]]
    if archive.kind != "model":
        parts.append(archive.kind)
    if not archive.is_final:
        parts.append(f"step-{archive.step}")
    return "-".join(parts) + ".tar.zst"
