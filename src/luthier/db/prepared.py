"""Statements compiled once a database and handed to the driver as they are: for the few that run all the time.

To run such a statement through SQLAlchemy takes longer than the database needs for it. Values and columns are converted
by their types as ever, and what the driver raises becomes SQLAlchemy's exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

_Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class _Compiled:
    text: str
    positions: Sequence[str] | None  # the names of ? in their order; None where the driver takes names
    values: tuple[tuple[str, _Convert], ...]  # by name
    columns: tuple[tuple[int, _Convert], ...]  # by place in a row


class Prepared:
    """One statement; ``columns`` are those of its rows, in their order. Every parameter is given at each run."""

    def __init__(self, statement: Any, columns: Sequence[sa.Column[Any]] = ()) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def find_row(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Run it in the connection's transaction and return its first row."""
        rows = self._run(connection, parameters, has_rows=True)
        if not rows:
            return None
        row = list(rows[0])
        for place, convert in self._get_compiled(connection.dialect).columns:
            row[place] = convert(row[place])
        return tuple(row)

    def run(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> None:
        """Run it in the connection's transaction."""
        self._run(connection, parameters, has_rows=False)

    def _run(self, connection: sa.Connection, parameters: Mapping[str, Any], *, has_rows: bool) -> Sequence[Any]:
        compiled = self._get_compiled(connection.dialect)
        values = dict(parameters)
        for name, convert in compiled.values:
            values[name] = convert(values[name])
        arguments = values if compiled.positions is None else [values[name] for name in compiled.positions]
        cursor = connection.connection.cursor()
        try:
            cursor.execute(compiled.text, arguments)
            return cursor.fetchall() if has_rows else ()
        except connection.dialect.loaded_dbapi.Error as error:
            base = connection.dialect.loaded_dbapi.Error
            raise DBAPIError.instance(compiled.text, None, error, base, dialect=connection.dialect) from error
        finally:
            cursor.close()

    def _get_compiled(self, dialect: sa.Dialect) -> _Compiled:
        found = self._compiled.get(dialect.name)
        if found is None:
            found = self._compiled[dialect.name] = self._compile(dialect)
        return found

    def _compile(self, dialect: sa.Dialect) -> _Compiled:
        compiled = self._statement.compile(dialect=dialect)
        values = [
            (name, bind.type.dialect_impl(dialect).bind_processor(dialect)) for name, bind in compiled.binds.items()
        ]
        columns = [
            (place, column.type.dialect_impl(dialect).result_processor(dialect, None))
            for place, column in enumerate(self._columns)
        ]
        return _Compiled(
            str(compiled),
            compiled.positiontup if compiled.positional else None,
            tuple((name, convert) for name, convert in values if convert is not None),
            tuple((place, convert) for place, convert in columns if convert is not None),
        )
