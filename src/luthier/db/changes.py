"""Whether anybody has committed since one last looked, so that a loop which polls need not ask every table."""

from __future__ import annotations

from luthier.db.session import Database


class Changes:
    """Watches one database from one thread.

    SQLite counts the commits of all other connections, in all processes, and tells the count in
    microseconds. PostgreSQL has no such count that every user may read: there a change is always assumed.
    """

    def __init__(self, database: Database) -> None:
        # A connection of its own, which never writes: SQLite does not count a connection's own commits.
        self._connection = database.engine.raw_connection() if database.is_sqlite else None
        self._version: object = None

    def have_come(self) -> bool:
        """Return whether there may be a commit that was not there at the last call; True at the first."""
        if self._connection is None:
            return True
        cursor = self._connection.cursor()
        try:
            version = cursor.execute("PRAGMA data_version").fetchone()[0]
        finally:
            cursor.close()
        changed = version != self._version
        self._version = version
        return bool(changed)

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()
