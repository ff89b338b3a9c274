"""The database: engine, session, and the one place that commits.

SQLite (the default) and PostgreSQL behave alike behind ``Database``: a write transaction has the
database to itself on SQLite, and takes row locks on PostgreSQL.
"""

from luthier.db.orm import Base
from luthier.db.session import Database, Session

__all__ = ["Base", "Database", "Session"]
