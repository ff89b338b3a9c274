"""Write docs/reference from the code, or check with --check that it is what the code says.

settings.md from the Settings class, http.md from the OpenAPI document, cli.md from the command
tree, errors.md from every ServiceError that the code raises.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic_core import PydanticUndefined

from luthier import errors
from luthier.app import build_app
from luthier.cli.main import app as cli
from luthier.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make reference` from the code; edit there. -->\n\n"


def write_settings() -> str:
    """One row a setting: the environment's name, the default, what it does."""
    lines = ["# Settings\n", NOTE + "Every setting is read from the environment.\n"]
    lines += ["| variable | default | what it does |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is PydanticUndefined or field.default is None else f"`{field.default}`"
        lines.append(f"| `LUTHIER_{name.upper()}` | {default} | {field.description} |")
    lines += [
        "\nThe command line also reads `LUTHIER_BASE_URL` and `LUTHIER_API_KEY`; without them it takes both from",
        "`credentials.json` under `LUTHIER_HOME`.",
    ]
    return "\n".join(lines) + "\n"


def write_http() -> str:
    """One row a route, grouped by dialect."""
    with tempfile.TemporaryDirectory() as folder:
        document = build_app(Settings(home=Path(folder))).openapi()
    lines = ["# HTTP routes\n", NOTE + "The whole document, with every field, is served at `/openapi.json`.\n"]
    lines += ["| method | path | what it does |", "|---|---|---|"]
    for path, methods in sorted(document["paths"].items()):
        for method, operation in methods.items():
            text = operation.get("description") or operation.get("summary", "")
            lines.append(f"| {method.upper()} | `{path}` | {' '.join(text.split(chr(10) * 2)[0].split())} |")
    return "\n".join(lines) + "\n"


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            if not child.hidden:
                yield from _commands(child, f"{path} {name}")
    else:
        yield path, command


def write_cli() -> str:
    """One section a command: its help text, then its arguments and options."""
    lines = ["# Commands\n", NOTE + "`luthier COMMAND --help` shows the same.\n"]
    for path, command in _commands(typer.main.get_command(cli), "luthier"):
        help_text = (command.help or "").replace("\b\n", "").strip()
        lines += [f"## {path}\n", f"```text\n{help_text}\n```\n"]
        rows = [_describe(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        if rows:
            lines += ["| option | what it does |", "|---|---|", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


def _describe(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    name = parameter.metavar if is_argument else ", ".join(parameter.opts)
    text = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
    return f"| `{name.replace('|', chr(92) + '|')}` | {text} |"


def find_error_codes() -> dict[str, set[str]]:
    """Return every literal code with the error classes that carry it."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            code = node.args[0]
            if name in classes and isinstance(code, ast.Constant) and isinstance(code.value, str):
                found.setdefault(code.value, set()).add(name)
    return found


def write_errors() -> str:
    """One row a code: its status and its kind."""
    lines = ["# Errors\n"]
    lines.append(
        NOTE + 'Every error answers `{"error": {"message", "type", "param", "code", "hint", "request_id"}}`. '
        "The message names the value at fault, the hint names the way out; programs go by the code.\n"
    )
    lines += ["| code | status | kind |", "|---|---|---|"]
    for code, names in sorted(find_error_codes().items()):
        for name in sorted(names):
            kind = getattr(errors, name)
            lines.append(f"| `{code}` | {kind.status} | {kind.__doc__.strip().splitlines()[0]} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write, or compare; return the exit status."""
    pages = {
        "settings.md": write_settings(),
        "http.md": write_http(),
        "cli.md": write_cli(),
        "errors.md": write_errors(),
    }
    if "--check" in sys.argv[1:]:
        stale = [name for name, text in pages.items() if _read(TARGET / name) != text]
        if stale:
            print(f"docs/reference is not what the code says: {', '.join(stale)}; run `make reference`")
        return 1 if stale else 0
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (TARGET / name).write_text(text)
        print(f"docs/reference/{name}")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
