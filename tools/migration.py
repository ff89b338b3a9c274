"""Write a migration for the difference between the tables in code and the newest revision.

    python tools/migration.py "add a column" [--id 0002]

The result is a draft: read it, name what it does, keep STRICT on new SQLite tables.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from pathlib import Path

from alembic import command

from luthier.db import Base, Database, schema

DOMAINS = ["accounts", "files", "catalog", "billing", "billing.payments", "artifacts", "jobs"]


def main() -> None:
    """Compare against a fresh database at head and write the revision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("message")
    parser.add_argument("--id", required=True, help="revision number, four digits")
    args = parser.parse_args()
    for domain in DOMAINS:
        importlib.import_module(f"luthier.{domain}.tables")
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'draft.db'}")
        config = schema.make_config()
        config.attributes["metadata"] = Base.metadata
        with database.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            command.revision(config, args.message, autogenerate=True, rev_id=args.id)
        database.dispose()


if __name__ == "__main__":
    main()
