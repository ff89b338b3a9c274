"""The declarative base and the column types that every table uses.

SQLite tables are STRICT, so each type compiles to INTEGER, REAL, TEXT or BLOB there.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import msgspec
from sqlalchemy import REAL, BigInteger, Dialect, Double, Integer, MetaData, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

# A 64-bit integer on both databases (SQLite's INTEGER is one, and only that spelling may be a rowid).
Int64 = BigInteger().with_variant(Integer(), "sqlite")

# Money, in nano-dollars (1e-9 $): exact, and the published rates are whole numbers a token.
Nanos = Int64

# STRICT tables know REAL, not DOUBLE; both are IEEE 754 binary64.
Float64: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")


class UtcTime(TypeDecorator[datetime]):
    """Aware UTC time, kept as whole microseconds since 1970: exact, ordered and the same on both databases."""

    impl = BigInteger().with_variant(Integer(), "sqlite")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Turn an aware time into microseconds.

        Raises AssertionError for a naive one, and for one that could not be read again.
        """
        del dialect
        if value is None:
            return None
        assert value.tzinfo is not None, f"naive time: {value!r}"
        assert _FIRST <= value <= _LAST, f"not a time that UTC can name: {value!r}"
        return (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Turn microseconds into an aware time."""
        del dialect
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Json(TypeDecorator[Any]):
    """A JSON document kept as text; never queried into."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Encode; None stays NULL."""
        del dialect
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Decode; NULL stays None."""
        del dialect
        return None if value is None else msgspec.json.decode(value)


class Base(DeclarativeBase):
    """Every table's parent. Constraint names follow one scheme, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text, int: Int64, float: Float64, datetime: UtcTime}
