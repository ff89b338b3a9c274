"""money."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from luthier.db.orm import Int64, Json, UtcTime

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


# An entry moves its amounts on its organization's accounts in the moment in which it is written, whoever writes it.
_FOLLOW = """UPDATE ledger_accounts SET cash_nanos = cash_nanos + NEW.cash_nanos,
    credit_nanos = credit_nanos + NEW.credit_nanos, held_nanos = held_nanos + NEW.held_nanos,
    spent_nanos = spent_nanos + NEW.spent_nanos, last_seq = NEW.seq, last_hash = NEW.hash, last_at = NEW.created_at
    WHERE organization_id = NEW.organization_id;"""
FOLLOW = {
    "sqlite": [f"CREATE TRIGGER ledger_entries_follow AFTER INSERT ON ledger_entries BEGIN {_FOLLOW} END"],
    "postgresql": [
        f"""CREATE FUNCTION follow_ledger_entry() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN {_FOLLOW} RETURN NULL; END $$""",
        """CREATE TRIGGER ledger_entries_follow AFTER INSERT ON ledger_entries
        FOR EACH ROW EXECUTE FUNCTION follow_ledger_entry()""",
    ],
}


def upgrade() -> None:
    """Apply."""
    _create_installation()
    _create_ledger()
    _create_limits()
    _create_payments()
    _extend_jobs()
    _number_claims()
    _pin_inputs()


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
    op.create_index(
        "ix_ledger_entries_cause", "ledger_entries", ["organization_id", "cause_kind", "cause_id", "seq"], unique=False
    )
    op.create_index("ix_ledger_entries_created", "ledger_entries", ["organization_id", "created_at"], unique=False)
    for statement in APPEND_ONLY[op.get_bind().dialect.name] + FOLLOW[op.get_bind().dialect.name]:
        op.execute(statement)


def _create_limits() -> None:
    op.create_table(
        "ledger_audits",
        sa.Column("audited_at", UtcTime(), nullable=False),
        sa.Column("entries", Int64, nullable=False),
        sa.Column("problems", Json(), nullable=False),
        sa.PrimaryKeyConstraint("audited_at", name=op.f("pk_ledger_audits")),
        sqlite_strict=True,
    )
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


def _create_payments() -> None:
    op.create_table(
        "webhook_events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("received_at", UtcTime(), nullable=False),
        sa.Column("applied_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_events")),
        sqlite_strict=True,
    )
    op.create_index("ix_webhook_events_received", "webhook_events", ["received_at"], unique=False)
    op.create_table(
        "auto_recharges",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("is_enabled", Int64, nullable=False),
        sa.Column("threshold_nanos", Int64, nullable=False),
        sa.Column("target_nanos", Int64, nullable=False),
        sa.Column("configured_at", UtcTime(), nullable=False),
        sa.Column("notice", sa.Text(), nullable=True),
        sa.CheckConstraint("is_enabled IN (0, 1)", name=op.f("ck_auto_recharges_is_enabled")),
        sa.CheckConstraint(
            "threshold_nanos > 0 AND target_nanos > threshold_nanos", name=op.f("ck_auto_recharges_amounts")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_auto_recharges_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_auto_recharges")),
        sqlite_strict=True,
    )
    op.create_table(
        "cards",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("brand", sa.Text(), nullable=False),
        sa.Column("last4", sa.Text(), nullable=False),
        sa.Column("exp_month", Int64, nullable=False),
        sa.Column("exp_year", Int64, nullable=False),
        sa.Column("default_key", sa.Text(), nullable=True),
        sa.Column("removed_at", UtcTime(), nullable=True),
        sa.Column("detached_at", UtcTime(), nullable=True),
        sa.CheckConstraint("default_key IS NULL OR default_key = organization_id", name=op.f("ck_cards_default")),
        sa.CheckConstraint("default_key IS NULL OR removed_at IS NULL", name=op.f("ck_cards_removed")),
        sa.CheckConstraint("detached_at IS NULL OR removed_at IS NOT NULL", name=op.f("ck_cards_detached")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_cards_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cards")),
        sa.UniqueConstraint("default_key", name=op.f("uq_cards_default_key")),
        sa.UniqueConstraint("ref", name=op.f("uq_cards_ref")),
        sqlite_strict=True,
    )
    op.create_index("ix_cards_organization", "cards", ["organization_id", "created_at"], unique=False)
    op.create_table(
        "payment_customers",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_payment_customers_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_payment_customers")),
        sa.UniqueConstraint("ref", name=op.f("uq_payment_customers_ref")),
        sqlite_strict=True,
    )
    op.create_table(
        "card_setups",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("customer_ref", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=True),
        sa.Column("return_url", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=True),
        sa.Column("action_url", sa.Text(), nullable=True),
        sa.Column("card_id", sa.Text(), nullable=True),
        sa.Column("failure_code", sa.Text(), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("looks", Int64, server_default=sa.text("0"), nullable=False),
        sa.Column("next_look_at", UtcTime(), nullable=True),
        sa.CheckConstraint("(card_id IS NOT NULL) = (status = 'succeeded')", name=op.f("ck_card_setups_card")),
        sa.CheckConstraint(
            "(next_look_at IS NULL) = (status IN ('canceled', 'failed', 'succeeded'))",
            name=op.f("ck_card_setups_next_look"),
        ),
        sa.CheckConstraint("kind IN ('hosted', 'page', 'token')", name=op.f("ck_card_setups_kind")),
        sa.CheckConstraint(
            "status IN ('canceled', 'created', 'failed', 'needs_action', 'open', 'succeeded')",
            name=op.f("ck_card_setups_status"),
        ),
        sa.ForeignKeyConstraint(["card_id"], ["cards.id"], name=op.f("fk_card_setups_card_id_cards")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_card_setups_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_card_setups")),
        sa.UniqueConstraint("ref", name=op.f("uq_card_setups_ref")),
        sqlite_strict=True,
    )
    op.create_index("ix_card_setups_due", "card_setups", ["next_look_at"], unique=False)
    _create_charges()


def _create_charges() -> None:
    op.create_table(
        "payments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.Column("amount_nanos", Int64, nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("customer_ref", sa.Text(), nullable=False),
        sa.Column("card_id", sa.Text(), nullable=False),
        sa.Column("is_automatic", Int64, nullable=False),
        sa.Column("open_key", sa.Text(), nullable=True),
        sa.Column("request_key", sa.Text(), nullable=True),
        sa.Column("return_url", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=True),
        sa.Column("action_url", sa.Text(), nullable=True),
        sa.Column("failure_code", sa.Text(), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("refunded_nanos", Int64, server_default=sa.text("0"), nullable=False),
        sa.Column("disputed_nanos", Int64, server_default=sa.text("0"), nullable=False),
        sa.Column("looks", Int64, server_default=sa.text("0"), nullable=False),
        sa.Column("next_look_at", UtcTime(), nullable=True),
        sa.CheckConstraint(
            "(next_look_at IS NULL) = (status IN ('canceled', 'failed', 'succeeded'))",
            name=op.f("ck_payments_next_look"),
        ),
        sa.CheckConstraint(
            "(open_key IS NOT NULL) = (is_automatic = 1 AND status IN ('created', 'needs_action'))",
            name=op.f("ck_payments_open_key"),
        ),
        sa.CheckConstraint(
            "status IN ('canceled', 'created', 'failed', 'needs_action', 'succeeded')", name=op.f("ck_payments_status")
        ),
        sa.CheckConstraint("amount_nanos > 0", name=op.f("ck_payments_amount")),
        sa.CheckConstraint("disputed_nanos >= 0", name=op.f("ck_payments_disputed")),
        sa.CheckConstraint("is_automatic IN (0, 1)", name=op.f("ck_payments_is_automatic")),
        sa.CheckConstraint("refunded_nanos BETWEEN 0 AND amount_nanos", name=op.f("ck_payments_refunded")),
        sa.ForeignKeyConstraint(["card_id"], ["cards.id"], name=op.f("fk_payments_card_id_cards")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_payments_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
        sa.UniqueConstraint("open_key", name=op.f("uq_payments_open_key")),
        sa.UniqueConstraint("organization_id", "request_key", name=op.f("uq_payments_organization_id_request_key")),
        sa.UniqueConstraint("ref", name=op.f("uq_payments_ref")),
        sqlite_strict=True,
    )
    op.create_index("ix_payments_due", "payments", ["next_look_at"], unique=False)
    op.create_index("ix_payments_organization", "payments", ["organization_id", "created_at"], unique=False)
    op.create_table(
        "disputes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.Column("amount_nanos", Int64, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("taken_nanos", Int64, nullable=False),
        sa.Column("moves", Int64, nullable=False),
        sa.CheckConstraint("taken_nanos BETWEEN 0 AND amount_nanos", name=op.f("ck_disputes_taken")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_disputes_organization_id_organizations")
        ),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_disputes_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_disputes")),
        sqlite_strict=True,
    )
    op.create_index("ix_disputes_organization", "disputes", ["organization_id", "created_at"], unique=False)
    op.create_table(
        "payment_refunds",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.Column("amount_nanos", Int64, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("request_key", sa.Text(), nullable=True),
        sa.Column("is_external", Int64, nullable=False),
        sa.Column("moves", Int64, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("looks", Int64, server_default=sa.text("0"), nullable=False),
        sa.Column("next_look_at", UtcTime(), nullable=True),
        sa.CheckConstraint(
            "(next_look_at IS NULL) = (status IN ('failed', 'succeeded'))", name=op.f("ck_payment_refunds_next_look")
        ),
        sa.CheckConstraint("status IN ('created', 'failed', 'succeeded')", name=op.f("ck_payment_refunds_status")),
        sa.CheckConstraint("amount_nanos > 0", name=op.f("ck_payment_refunds_amount")),
        sa.CheckConstraint("is_external IN (0, 1)", name=op.f("ck_payment_refunds_is_external")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_payment_refunds_organization_id_organizations")
        ),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_payment_refunds_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payment_refunds")),
        sa.UniqueConstraint("payment_id", "request_key", name=op.f("uq_payment_refunds_payment_id_request_key")),
        sa.UniqueConstraint("ref", name=op.f("uq_payment_refunds_ref")),
        sqlite_strict=True,
    )
    op.create_index("ix_payment_refunds_due", "payment_refunds", ["next_look_at"], unique=False)


def _extend_jobs() -> None:
    op.add_column("jobs", sa.Column("price_version", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("currency", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("limit_deadline_at", UtcTime(), nullable=True))


def _number_claims() -> None:
    for table in ("files", "base_models", "tokenizations"):
        op.add_column(table, sa.Column("claim_number", Int64, server_default=sa.text("0"), nullable=False))


def _pin_inputs() -> None:
    op.add_column("jobs", sa.Column("base_model_revision", sa.Text(), nullable=True))
