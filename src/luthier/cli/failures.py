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
    for message, hint in _list_problems(failure):
        console.print(Text.assemble(("error: ", "bold red"), escape(message)))
        if hint:
            console.print(Text.assemble((" hint: ", "bold cyan"), escape(hint)))
    if failure.request_id and failure.exit_code is Exit.SERVER:
        console.print(Text(f"       request {escape(failure.request_id)}", style="dim"))


def _list_problems(failure: Failure) -> list[tuple[str, object]]:
    """Return each problem with its hint: the failure's own, or its details where it sums up several."""
    if len(failure.details) < 2:  # noqa: PLR2004 - a single detail says what the message says
        return [(failure.message, failure.hint)]
    problems = []
    for detail in failure.details:
        param, message = str(detail.get("param") or ""), str(detail.get("message") or "")
        problems.append((message if message.startswith(param) else f"{param}: {message}", detail.get("hint")))
    return problems
