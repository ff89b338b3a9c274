"""The schema: brought up to date by Alembic, and refused when it is newer than this code."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from luthier.db.session import Database

MIGRATIONS_DIR = Path(__file__).parents[1] / "migrations"


def make_config() -> Config:
    """Return the Alembic configuration of our migrations; the caller adds a connection."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    return config


def upgrade(database: Database) -> None:
    """Bring the schema to the newest revision; nothing happens when it is there already."""
    config = make_config()
    with database.engine.connect() as connection:
        if MigrationContext.configure(connection).get_current_revision() == get_head():
            return
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def get_head() -> str:
    """Return the newest revision that this code knows."""
    head = ScriptDirectory.from_config(make_config()).get_current_head()
    assert head is not None
    return head
