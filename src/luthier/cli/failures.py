"""A failure, shown: for people ``error:`` and ``hint:``, for scripts one JSON object, both on stderr."""

from __future__ import annotations

import sys

from rich.text import Text

from luthier.cli.exits import Exit, Failure
from luthier.cli.output import Output, print_json
from luthier.cli.text import escape


def show(failure: Failure, *, as_json: bool) -> None:
    """Print ``failure`` on stderr."""
    if as_json:
        print_json(failure.to_json(), sys.stderr)
        return
    console = Output(as_json=False).err
    console.print(Text.assemble(("error: ", "bold red"), escape(failure.message)))
    for detail in failure.details:
        param, message, hint = (detail.get(name) for name in ("param", "message", "hint"))
        where = f"{param}: " if param else ""
        console.print(Text.assemble("  ", (escape(where), "bold"), escape(message or "")))
        if hint:
            console.print(Text.assemble("    ", ("hint: ", "cyan"), escape(hint)))
    if failure.hint:
        console.print(Text.assemble((" hint: ", "bold cyan"), escape(failure.hint)))
    if failure.request_id and failure.exit_code is Exit.SERVER:
        console.print(Text(f"       request {escape(failure.request_id)}", style="dim"))
