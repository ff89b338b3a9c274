"""Where a command writes: its answer on stdout, everything else (progress, questions, notes) on stderr.

With ``--json`` stdout carries JSON and nothing else. Without a terminal there is no colour, no
progress and no wrapping, so that a line stays a line in a pipe.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias

import typer

from luthier.cli.exits import Exit
from luthier.cli.text import escape

if TYPE_CHECKING:  # rich is imported when something is printed for people
    from rich.console import Console, RenderableType
    from rich.text import Text

BAR_DELAY_S = 0.3
PIPE_WIDTH = 4096  # wide enough that no line of ours is wrapped when no person sees it

Cell: TypeAlias = "str | Text"


@dataclass(frozen=True)
class Column:
    """One column of a table. A ``fixed`` one (an id, a number) is never wrapped; the others give way."""

    title: str
    fixed: bool = True
    right: bool = False


class Output:
    """The two streams of one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    @cached_property
    def out(self) -> Console:
        """Stdout, for the answer."""
        return _make_console(sys.stdout)

    @cached_property
    def err(self) -> Console:
        """Stderr, for everything else."""
        return _make_console(sys.stderr)

    @property
    def is_live(self) -> bool:
        """Whether a person watches: progress may move and questions may be asked."""
        return not self.as_json and sys.stdin.isatty() and self.err.is_terminal

    def write_json(self, value: object) -> None:
        """Print one JSON document: indented for a person's eye, on one line in a pipe."""
        print_json(value, sys.stdout)

    def write_json_line(self, value: object) -> None:
        """Print one JSON object of a stream, on one line and at once."""
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    def line(self, text: Cell = "", *, style: str | None = None) -> None:
        """Print one line of the answer. A plain string is escaped; a Text is the caller's care."""
        self.out.print(escape(text) if isinstance(text, str) else text, style=style, soft_wrap=not self.out.is_terminal)

    def note(self, text: Cell, *, style: str | None = "dim") -> None:
        """Print one line beside the answer, on stderr; nothing with ``--json``."""
        if not self.as_json:
            self.err.print(escape(text) if isinstance(text, str) else text, style=style)

    def render(self, *parts: RenderableType) -> None:
        """Print what rich knows how to draw."""
        for part in parts:
            _print_block(self.out, part)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, empty: str) -> None:
        """Print rows under headings; one block a row when the terminal is too narrow for that; ``empty`` for none."""
        from luthier.cli import tables

        rows = list(rows)
        if not rows:
            self.note(empty)
            return
        _print_block(self.out, tables.make(self.out, columns, rows))

    def fields(self, pairs: Iterable[tuple[str, Cell | None]], *, indent: int = 0) -> None:
        """Print names and values in two columns; pairs without a value are left out."""
        from luthier.cli import tables

        _print_block(self.out, tables.make_fields(pairs, indent=indent))

    def show_beside(self, pairs: Iterable[tuple[str, Cell | None]]) -> None:
        """As ``fields``, but on stderr: what a person should see before answering."""
        from luthier.cli import tables

        _print_block(self.err, tables.make_fields(pairs))

    def styled(self, value: object, styles: Mapping[str, str]) -> Text:
        """Return ``value``, escaped, in the style that ``styles`` has for it."""
        from rich.text import Text

        return Text(escape(value), styles.get(str(value), ""))

    def confirm(self, question: str, *, default: bool = True) -> bool:
        """Ask on stderr; Enter means ``default``, the end of stdin means no."""
        self.err.print(f"{escape(question)} {'[Y/n]' if default else '[y/N]'} ", end="")
        line = sys.stdin.readline()
        answer = line.strip().lower()
        return answer in {"y", "yes"} or (default and line != "" and not answer)

    def require_start(self, question: str) -> None:
        """Ask before something is begun; without a terminal nobody can be asked, and it begins."""
        if self.is_live and not self.confirm(question):
            self.note("nothing was started")
            raise typer.Exit(Exit.NEGATIVE)

    def require_consent(self, question: str, *, yes: bool) -> None:
        """Ask before something is destroyed, where a person can answer. Ends the command when the answer is no."""
        if not yes and self.is_live and not self.confirm(question, default=False):
            self.note("nothing was changed")
            raise typer.Exit(Exit.NEGATIVE)

    @contextmanager
    def progress(
        self, label: str, *, unit: Literal["bytes", "count"] = "bytes"
    ) -> Iterator[Callable[[int, int], None]]:
        """Show a bar on stderr while the body runs; yields what to call with (done, total).

        Nothing without a terminal, and nothing for what is done before one could read it.
        """
        if not self.is_live:
            yield lambda _done, _total: None
            return
        from luthier.cli import bars

        bar = bars.make_byte_bar(self.err) if unit == "bytes" else bars.make_count_bar(self.err)
        task = bar.add_task(escape(label), total=None)
        began = time.monotonic()

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if time.monotonic() - began > BAR_DELAY_S:
                bar.start()

        try:
            yield advance
        finally:
            bar.stop()

    @contextmanager
    def waiting(self, label: str) -> Iterator[Callable[[str], None]]:
        """Show on stderr what is being waited for; yields what to call with a new label."""
        if not self.is_live:
            yield lambda _label: None
            return
        from rich.text import Text  # a plain string would be read as markup

        with self.err.status(Text(escape(label)), spinner="dots", spinner_style="cyan") as status:
            yield lambda text: status.update(Text(escape(text)))


def print_json(value: object, stream: TextIO) -> None:
    """Print one JSON document on ``stream``. ASCII, so that nothing in it can act upon a terminal."""
    indent = 2 if stream.isatty() else None
    stream.write(json.dumps(value, indent=indent) + "\n")
    stream.flush()


def _make_console(stream: TextIO) -> Console:
    from rich.console import Console

    class PipeConsole(Console):
        """Leaves a reader that went away (`| head`) to ``main.run``."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = PipeConsole(file=stream, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _print_block(console: Console, block: RenderableType) -> None:
    """Print a table; in a pipe without the blanks that fill its last column."""
    if console.is_terminal:
        console.print(block)
        return
    with console.capture() as captured:
        console.print(block)
    console.file.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def as_dict(value: Any) -> dict[str, Any]:
    """Return a JSON object, or an empty one for anything else: what a server sends is not to be trusted blindly."""
    return value if isinstance(value, dict) else {}
