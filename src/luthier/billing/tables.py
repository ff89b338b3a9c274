"""Table of token counts, one row for each (content, tokenizer, settings) that was ever priced."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from luthier.db import Base
from luthier.db.orm import Json


class Tokenization(Base):
    """The tokenised form of one file under one tokenizer: the exact counts, and where the tokens are kept.

    ``status``: queued, running, ready, rejected (the data's fault, for good) or failed (ours, may be
    asked for again). The key is a hash of the content and of everything that changes the tokens, so
    the row is shared by all who price or train the same content.
    """

    __tablename__ = "tokenizations"
    __table_args__ = (sa.Index("ix_tokenizations_status", "status", "created_at"), {"sqlite_strict": True})

    key: Mapped[str] = mapped_column(primary_key=True)
    file_sha256: Mapped[str]
    file_object_key: Mapped[str]
    model: Mapped[str]  # base model whose tokenizer is used; its folder is looked up when the work starts
    tokenizer_digest: Mapped[str]
    max_seq_length: Mapped[int]
    train_on_inputs: Mapped[str]  # auto, true, false
    created_at: Mapped[datetime]

    status: Mapped[str]
    claimed_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(server_default=sa.text("0"))
    error: Mapped[Any | None] = mapped_column(Json)  # {"code", "message", "hint"}

    object_key: Mapped[str | None]  # the tokens, as datasets.tokens writes them
    counts: Mapped[Any | None] = mapped_column(Json)  # datasets.tokens.Counts
