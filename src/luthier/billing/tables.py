"""Tables of token counts, of the ledger, of holds and of limits."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from luthier.db import Base
from luthier.db.orm import Json, Nanos


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
    claim_number: Mapped[int] = mapped_column(server_default=sa.text("0"))  # of the last claim: earlier ones are void
    error: Mapped[Any | None] = mapped_column(Json)  # {"code", "message", "hint"}

    object_key: Mapped[str | None]  # the tokens, as datasets.tokens writes them
    counts: Mapped[Any | None] = mapped_column(Json)  # datasets.tokens.Counts


class LedgerAccount(Base):
    """An organization's accounts as its last entry left them: a trigger on the entries keeps them so.

    Every entry locks this row, so that entries form a line.
    """

    __tablename__ = "ledger_accounts"
    __table_args__ = (
        sa.CheckConstraint("credit_nanos >= 0 AND held_nanos >= 0 AND spent_nanos >= 0", name="not_negative"),
        {"sqlite_strict": True},
    )

    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"), primary_key=True)
    cash_nanos: Mapped[int] = mapped_column(Nanos)  # below zero only by a withdrawal, or where billing is off
    credit_nanos: Mapped[int] = mapped_column(Nanos)
    held_nanos: Mapped[int] = mapped_column(Nanos)
    spent_nanos: Mapped[int] = mapped_column(Nanos)
    last_seq: Mapped[int]
    last_hash: Mapped[str]
    last_at: Mapped[datetime]  # no entry is dated before it, whatever the clock says


class LedgerEntry(Base):
    """One transfer, for good: rows are never changed or removed, which triggers enforce.

    Double entry with a column an account: what an entry puts into one account it takes from others, so that the six
    amounts of a row sum to zero. ``hash`` covers the row and the hash before it.
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (
        sa.UniqueConstraint("organization_id", "key"),
        sa.CheckConstraint(
            "cash_nanos + credit_nanos + held_nanos + spent_nanos + payments_nanos + adjustments_nanos = 0",
            name="balanced",
        ),
        sa.Index("ix_ledger_entries_cause", "organization_id", "cause_kind", "cause_id", "seq"),
        sa.Index("ix_ledger_entries_created", "organization_id", "created_at"),
        {"sqlite_strict": True},
    )

    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)  # from 1, without gaps
    created_at: Mapped[datetime]
    kind: Mapped[str]
    key: Mapped[str]  # the same key again has no second effect
    cause_kind: Mapped[str]  # job, payment, operator
    cause_id: Mapped[str]
    note: Mapped[str]  # what happened, as a sentence
    cash_nanos: Mapped[int] = mapped_column(Nanos)
    credit_nanos: Mapped[int] = mapped_column(Nanos)
    held_nanos: Mapped[int] = mapped_column(Nanos)
    spent_nanos: Mapped[int] = mapped_column(Nanos)  # what the organization has spent is the platform's revenue
    payments_nanos: Mapped[int] = mapped_column(Nanos)
    adjustments_nanos: Mapped[int] = mapped_column(Nanos)
    previous_hash: Mapped[str]
    hash: Mapped[str]


class LedgerAudit(Base):
    """What a verification of the whole ledger found."""

    __tablename__ = "ledger_audits"
    __table_args__ = ({"sqlite_strict": True},)

    audited_at: Mapped[datetime] = mapped_column(primary_key=True)
    entries: Mapped[int]
    problems: Mapped[Any] = mapped_column(Json)  # one sentence each


class Hold(Base):
    """Money set aside for one job: open until it is resolved, once, by capturing all, a part or nothing of it.

    It keeps what is bought, so that every charge can be traced to its tokens and its rate.
    """

    __tablename__ = "holds"
    __table_args__ = (
        sa.CheckConstraint("credit_nanos BETWEEN 0 AND amount_nanos", name="credit"),
        sa.CheckConstraint("captured_nanos BETWEEN 0 AND amount_nanos", name="captured"),
        sa.CheckConstraint("refunded_nanos BETWEEN 0 AND captured_nanos OR refunded_nanos = 0", name="refunded"),
        sa.CheckConstraint("(captured_nanos IS NULL) = (resolved_at IS NULL)", name="resolved"),
        sa.Index("ix_holds_organization", "organization_id", "resolved_at"),
        sa.Index("ix_holds_project", "project_id", "resolved_at"),
        sa.Index("ix_holds_key", "api_key_id", "resolved_at"),
        {"sqlite_strict": True},
    )

    job_id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    project_id: Mapped[str]
    api_key_id: Mapped[str]
    created_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]
    base_model: Mapped[str]  # what is bought, and how its price comes about:
    method: Mapped[str]
    training_type: Mapped[str]
    billed_tokens: Mapped[int]
    rate_nanos: Mapped[int] = mapped_column(Nanos)
    price_version: Mapped[str]
    currency: Mapped[str]
    amount_nanos: Mapped[int] = mapped_column(Nanos)
    credit_nanos: Mapped[int] = mapped_column(Nanos)  # of the amount, what came from promotional credit
    captured_nanos: Mapped[int | None] = mapped_column(Nanos)
    refunded_nanos: Mapped[int] = mapped_column(Nanos, server_default=sa.text("0"))


class CreditLine(Base):
    """How far below zero an organization's available balance may go, once a card is on file."""

    __tablename__ = "credit_lines"
    __table_args__ = (
        sa.CheckConstraint("limit_nanos >= 0", name="limit"),
        sa.CheckConstraint("has_card IN (0, 1)", name="has_card"),
        {"sqlite_strict": True},
    )

    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"), primary_key=True)
    limit_nanos: Mapped[int] = mapped_column(Nanos)
    has_card: Mapped[int]
    updated_at: Mapped[datetime]


class SpendingLimit(Base):
    """The most that an organization, one of its projects or one of its keys may spend in a calendar month (UTC)."""

    __tablename__ = "spending_limits"
    __table_args__ = (
        sa.CheckConstraint("scope IN ('key', 'organization', 'project')", name="scope"),
        sa.CheckConstraint("monthly_nanos >= 0", name="monthly"),
        sa.Index("ix_spending_limits_organization", "organization_id"),
        {"sqlite_strict": True},
    )

    scope: Mapped[str] = mapped_column(primary_key=True)
    scope_id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    monthly_nanos: Mapped[int] = mapped_column(Nanos)
    updated_at: Mapped[datetime]


class LimitAlert(Base):
    """That spending reached a share of a limit in a month: told once."""

    __tablename__ = "limit_alerts"
    __table_args__ = (
        sa.Index("ix_limit_alerts_organization", "organization_id", "created_at"),
        {"sqlite_strict": True},
    )

    scope: Mapped[str] = mapped_column(primary_key=True)
    scope_id: Mapped[str] = mapped_column(primary_key=True)
    period: Mapped[str] = mapped_column(primary_key=True)  # YYYY-MM
    percent: Mapped[int] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    limit_nanos: Mapped[int] = mapped_column(Nanos)
    used_nanos: Mapped[int] = mapped_column(Nanos)
    created_at: Mapped[datetime]
