"""Which generation of clients asks: the first one writes event types in capitals and accepts no others."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Header

Dialect = Literal["v1", "v3"]

_V1_USER_AGENT = "Together/v1 "
_V1_SPELLING = {"model_compressing": "COMPRESSING_MODEL"}
# Every other type would make a v1 client fail; it is shown as a warning, which keeps the message.
_V1_TYPES = frozenset({
    "billing_limit", "cancel_requested", "checkpoint_save", "epoch_complete", "eval_complete", "job_complete",
    "job_error", "job_pending", "job_restarted", "job_start", "job_stopped", "model_compressing",
    "model_compression_complete", "model_download_complete", "model_downloading", "model_upload_complete",
    "model_uploading", "refund", "training_complete", "training_data_download_complete", "training_data_downloading",
    "training_start", "validation_data_download_complete", "validation_data_downloading", "wandb_init", "warning",
})  # fmt: skip


def read_dialect(user_agent: Annotated[str, Header(include_in_schema=False)] = "") -> Dialect:
    """Tell the dialect from the ``User-Agent``."""
    return "v1" if user_agent.startswith(_V1_USER_AGENT) else "v3"


DialectParam = Annotated[Dialect, Depends(read_dialect)]


def spell_event_type(event_type: str, dialect: Dialect) -> str:
    """Return an event's type as the dialect writes it."""
    if dialect == "v3":
        return event_type
    if event_type not in _V1_TYPES:
        return "WARNING"
    return _V1_SPELLING.get(event_type, event_type.upper())
