from __future__ import annotations

import pytest
import sqlalchemy as sa

from luthier.db import schema


def test_upgrade_when_repeated_changes_nothing(database):
    schema.upgrade(database)
    with database.read() as tx:
        assert tx.scalar(sa.text("SELECT version_num FROM alembic_version")) == schema.list_revisions()[-1]


def test_upgrade_when_a_newer_luthier_was_here_is_refused(database):
    with database.transaction() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(schema.SchemaTooNew, match="9999"):
        schema.upgrade(database)


def test_revisions_in_file_names_are_those_inside():
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(schema.make_config())
    assert [script.revision for script in reversed(list(scripts.walk_revisions()))] == schema.list_revisions()
