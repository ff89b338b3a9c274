"""The schema: brought up to date by Alembic, and refused when it is newer than this code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from luthier.db.session import Database
from luthier.errors import ServiceError

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS_DIR = Path(__file__).parents[1] / "migrations"


class SchemaTooNew(ServiceError):
    """A newer Luthier has migrated this database."""


def make_config() -> Config:
    """Return the Alembic configuration of our migrations; the caller adds a connection."""
    from alembic.config import Config  # noqa: PLC0415  a third of a second that most starts do not need

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    return config


def list_revisions() -> list[str]:
    """Return the revisions that this code knows, oldest first: the first four characters of their files."""
    return sorted(path.name[:4] for path in (MIGRATIONS_DIR / "versions").glob("[0-9]*.py"))


def upgrade(database: Database) -> None:
    """Bring the schema to the newest revision; nothing happens when it is there already.

    Any number of processes may do this at once. Raises SchemaTooNew when the database is at a revision that
    this code does not know.
    """
    with database.engine.connect() as connection:
        if not _must_upgrade(connection):
            return
    from alembic import command  # noqa: PLC0415

    config = make_config()
    with database.reshaping() as connection:
        if _must_upgrade(connection):  # still: another process may have done it meanwhile
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _must_upgrade(connection: sa.Connection) -> bool:
    revisions = list_revisions()
    current = _find_current(connection)
    if current == revisions[-1]:
        return False
    if current is not None and current not in revisions:
        raise SchemaTooNew(
            "schema_too_new",
            f"the database is at revision {current}, newer than this Luthier's {revisions[-1]}",
            hint="run the newer version, or restore a backup from before its upgrade",
        )
    return True


def _find_current(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    current: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return current
