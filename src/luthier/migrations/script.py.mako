"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from luthier.db.orm import Float64, Int64, Json, UtcTime
${imports if imports else ""}
revision = "${up_revision}"
down_revision = ${("\"%s\"" % down_revision) if down_revision else None}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    ${upgrades if upgrades else "pass"}
