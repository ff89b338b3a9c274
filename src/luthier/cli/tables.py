"""Tables that stay legible: headings above columns while they fit, one block a row when they do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from luthier.cli.output import Column
from luthier.cli.text import escape

FLEXIBLE_MIN_WIDTH = 12  # below this a wrapped column reads worse than a block a row


def make(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str | Text]]) -> RenderableType:
    """Return the table, or blocks when ``console`` is too narrow for it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(
            column.title,
            no_wrap=column.fixed,
            min_width=None if column.fixed else FLEXIBLE_MIN_WIDTH,
            overflow="ellipsis" if column.fixed else "fold",
            justify="right" if column.right else "left",
        )
    for row in rows:
        table.add_row(*map(to_text, row))
    natural_fixed = sum(
        max(to_text(row[index]).cell_len for row in [*rows, [c.title for c in columns]]) + 2
        if column.fixed
        else FLEXIBLE_MIN_WIDTH + 2
        for index, column in enumerate(columns)
    )
    if natural_fixed - 2 <= console.width:
        return table
    titles = [column.title for column in columns]
    return Group(*(Padding(make_fields(zip(titles, row, strict=True)), (0, 0, 1, 0)) for row in rows))


def make_fields(pairs: Iterable[tuple[str, str | Text | None]], *, indent: int = 0) -> RenderableType:
    """Return names and values in two columns."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            table.add_row(name, to_text(value))
    return Padding(table, (0, 0, 0, indent), expand=False)


def to_text(value: str | Text) -> Text:
    """Return a cell: a plain string is escaped, a Text is taken as it is."""
    return value if isinstance(value, Text) else Text(escape(value))
