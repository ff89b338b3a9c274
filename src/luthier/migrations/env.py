"""Alembic's entry: runs the migrations on the connection that ``luthier.db.schema`` hands over."""

from typing import Any, Literal

from alembic import context

from luthier.db.orm import Float64, Int64, Json, UtcTime

_NAMES = {repr(Int64): "Int64", repr(Float64): "Float64"}


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write our column types by their short names, which script.py.mako imports."""
    if kind != "type":
        return False
    if isinstance(item, UtcTime | Json):
        return f"{type(item).__name__}()"
    return _NAMES.get(repr(item), False)


attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    target_metadata=attributes.get("metadata"),
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
