"""Table of base models."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from luthier.db import Base
from luthier.db.orm import Json


class BaseModelRow(Base):
    """A base model that jobs may name. ``status``: absent, queued, fetching, ready or failed."""

    __tablename__ = "base_models"
    __table_args__ = (sa.Index("ix_base_models_status", "status"), {"sqlite_strict": True})

    name: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str]  # builtin, hub, folder, package
    reference: Mapped[str]  # repository id, path, or package==version
    requested_revision: Mapped[str | None]
    is_builtin: Mapped[int]
    created_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]

    status: Mapped[str]
    claimed_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default=sa.text("0"))
    claim_number: Mapped[int] = mapped_column(server_default=sa.text("0"))  # of the last claim: earlier ones are void
    error: Mapped[str | None]

    # Known once the weights are here:
    path: Mapped[str | None]  # folder in the Hugging Face layout
    fetched_from: Mapped[str | None]  # which source was used in the end, in words
    revision: Mapped[str | None]  # sha256 over the weight files: the identity of the weights
    tokenizer_digest: Mapped[str | None]  # sha256 over tokenizer and chat template: part of the quote's key
    size_bytes: Mapped[int | None]
    facts: Mapped[Any | None] = mapped_column(Json)  # catalog.facts.Facts: architecture, parameters, context, linears
