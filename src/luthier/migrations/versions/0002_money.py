"""money."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from luthier.db.orm import Int64, UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


# The ledger's entries are never changed or removed, whoever asks.
APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER ledger_entries_no_{verb.lower()} BEFORE {verb} ON ledger_entries "
        "BEGIN SELECT RAISE(ABORT, 'ledger entries are never changed or removed'); END"
        for verb in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        """CREATE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'ledger entries are never changed or removed'; END $$""",
        """CREATE TRIGGER ledger_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()""",
    ],
}


def _create_installation() -> None:
    op.create_table(
        "installation",
        sa.Column("id", Int64, autoincrement=False, nullable=False),
        sa.Column("master_key_fingerprint", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_installation_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
        sqlite_strict=True,
    )


def upgrade() -> None:
    """Apply."""
    _create_installation()
    _create_ledger()
    _create_limits()
    _extend_jobs()


def _create_ledger() -> None:
    op.create_table(
        "holds",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("resolved_at", UtcTime(), nullable=True),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("training_type", sa.Text(), nullable=False),
        sa.Column("billed_tokens", Int64, nullable=False),
        sa.Column("rate_nanos", Int64, nullable=False),
        sa.Column("price_version", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("amount_nanos", Int64, nullable=False),
        sa.Column("credit_nanos", Int64, nullable=False),
        sa.Column("captured_nanos", Int64, nullable=True),
        sa.Column("refunded_nanos", Int64, server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("(captured_nanos IS NULL) = (resolved_at IS NULL)", name=op.f("ck_holds_resolved")),
        sa.CheckConstraint("captured_nanos BETWEEN 0 AND amount_nanos", name=op.f("ck_holds_captured")),
        sa.CheckConstraint("credit_nanos BETWEEN 0 AND amount_nanos", name=op.f("ck_holds_credit")),
        sa.CheckConstraint(
            "refunded_nanos BETWEEN 0 AND captured_nanos OR refunded_nanos = 0", name=op.f("ck_holds_refunded")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_holds_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_holds")),
        sqlite_strict=True,
    )
    op.create_index("ix_holds_key", "holds", ["api_key_id", "resolved_at"], unique=False)
    op.create_index("ix_holds_organization", "holds", ["organization_id", "resolved_at"], unique=False)
    op.create_index("ix_holds_project", "holds", ["project_id", "resolved_at"], unique=False)
    op.create_table(
        "ledger_accounts",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("cash_nanos", Int64, nullable=False),
        sa.Column("credit_nanos", Int64, nullable=False),
        sa.Column("held_nanos", Int64, nullable=False),
        sa.Column("spent_nanos", Int64, nullable=False),
        sa.Column("last_seq", Int64, nullable=False),
        sa.Column("last_hash", sa.Text(), nullable=False),
        sa.Column("last_at", UtcTime(), nullable=False),
        sa.CheckConstraint(
            "credit_nanos >= 0 AND held_nanos >= 0 AND spent_nanos >= 0", name=op.f("ck_ledger_accounts_not_negative")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_ledger_accounts_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_ledger_accounts")),
        sqlite_strict=True,
    )
    op.create_table(
        "ledger_entries",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("seq", Int64, nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("cause_kind", sa.Text(), nullable=False),
        sa.Column("cause_id", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("cash_nanos", Int64, nullable=False),
        sa.Column("credit_nanos", Int64, nullable=False),
        sa.Column("held_nanos", Int64, nullable=False),
        sa.Column("spent_nanos", Int64, nullable=False),
        sa.Column("payments_nanos", Int64, nullable=False),
        sa.Column("adjustments_nanos", Int64, nullable=False),
        sa.Column("previous_hash", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "cash_nanos + credit_nanos + held_nanos + spent_nanos + payments_nanos + adjustments_nanos = 0",
            name=op.f("ck_ledger_entries_balanced"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_ledger_entries_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("organization_id", "seq", name=op.f("pk_ledger_entries")),
        sa.UniqueConstraint("organization_id", "key", name=op.f("uq_ledger_entries_organization_id_key")),
        sqlite_strict=True,
    )
    op.create_index("ix_ledger_entries_cause", "ledger_entries", ["cause_kind", "cause_id"], unique=False)
    op.create_index("ix_ledger_entries_created", "ledger_entries", ["organization_id", "created_at"], unique=False)
    for statement in APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)


def _create_limits() -> None:
    op.create_table(
        "credit_lines",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("limit_nanos", Int64, nullable=False),
        sa.Column("has_card", Int64, nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.CheckConstraint("has_card IN (0, 1)", name=op.f("ck_credit_lines_has_card")),
        sa.CheckConstraint("limit_nanos >= 0", name=op.f("ck_credit_lines_limit")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_credit_lines_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_credit_lines")),
        sqlite_strict=True,
    )
    op.create_table(
        "spending_limits",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("scope_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("monthly_nanos", Int64, nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.CheckConstraint("monthly_nanos >= 0", name=op.f("ck_spending_limits_monthly")),
        sa.CheckConstraint("scope IN ('key', 'organization', 'project')", name=op.f("ck_spending_limits_scope")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_spending_limits_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("scope", "scope_id", name=op.f("pk_spending_limits")),
        sqlite_strict=True,
    )
    op.create_index("ix_spending_limits_organization", "spending_limits", ["organization_id"], unique=False)
    op.create_table(
        "limit_alerts",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("scope_id", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("percent", Int64, nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("limit_nanos", Int64, nullable=False),
        sa.Column("used_nanos", Int64, nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_limit_alerts_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("scope", "scope_id", "period", "percent", name=op.f("pk_limit_alerts")),
        sqlite_strict=True,
    )
    op.create_index("ix_limit_alerts_organization", "limit_alerts", ["organization_id", "created_at"], unique=False)


def _extend_jobs() -> None:
    op.add_column("jobs", sa.Column("price_version", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("currency", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("limit_deadline_at", UtcTime(), nullable=True))
