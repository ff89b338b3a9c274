from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from luthier.db import Database, schema


def test_upgrade_when_repeated_changes_nothing(database):
    schema.upgrade(database)
    with database.read() as tx:
        assert tx.scalar(sa.text("SELECT version_num FROM alembic_version")) == schema.list_revisions()[-1]


def test_upgrade_when_a_newer_luthier_was_here_is_refused(database):
    with database.transaction() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(schema.SchemaTooNew, match="9999"):
        schema.upgrade(database)


def test_upgrade_when_many_do_it_at_once_is_done_once(new_database):
    together, failures = threading.Barrier(4), []

    def upgrade() -> None:
        database = Database(new_database.url)
        together.wait(timeout=10)
        try:
            schema.upgrade(database)
        except Exception as error:  # noqa: BLE001  any is a failure
            failures.append(error)
        database.dispose()

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with new_database.read() as tx:
        assert tx.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == schema.list_revisions()[-1:]


def test_revisions_in_file_names_are_those_inside():
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(schema.make_config())
    assert [script.revision for script in reversed(list(scripts.walk_revisions()))] == schema.list_revisions()
