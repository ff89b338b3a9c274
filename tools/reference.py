"""Write docs/reference from the code, or check with --check that it is what the code says.

settings.md from the Settings class, http.md from the OpenAPI document, cli.md from the command
tree, errors.md from every ServiceError that the code raises.
"""

from __future__ import annotations

import ast
import importlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main
from pydantic_core import PydanticUndefined

from luthier.app import build_app
from luthier.cli.main import app as cli
from luthier.errors import ServiceError
from luthier.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
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


def find_error_codes(source: Path = SOURCE) -> dict[str, set[type[ServiceError]]]:
    """Return every code with the error classes that carry it.

    Raises UnreadableCode for one that is put together at run time: it would be missing from the page.
    """
    trees = {path: ast.parse(path.read_text()) for path in sorted(source.rglob("*.py"))}
    classes = _find_error_classes(source, trees)
    found: dict[str, set[type[ServiceError]]] = {}
    for path, tree in trees.items():
        for kind, node in _list_makings(tree, classes):
            for code in _read_codes(path, node):
                found.setdefault(code, set()).add(kind)
    return found


class UnreadableCode(Exception):
    """A code that does not stand where the error is made."""


def _find_error_classes(source: Path, trees: Mapping[Path, ast.Module]) -> dict[str, type[ServiceError]]:
    """Import every module that derives an error, and return all error classes by name."""
    classes: dict[str, type[ServiceError]] = {"ServiceError": ServiceError}
    size_before = 0
    while len(classes) > size_before:  # a class may derive from one that a later module defines
        size_before = len(classes)
        for path, tree in trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and classes.keys() & {_get_name(base) for base in node.bases}:
                    module = ".".join(path.relative_to(source).with_suffix("").parts)
                    classes[node.name] = getattr(importlib.import_module(module), node.name)
    return classes


def _list_makings(
    tree: ast.Module, classes: Mapping[str, type[ServiceError]]
) -> Iterator[tuple[type[ServiceError], ast.Call]]:
    """Yield every call that gives an error its code: of the class, or of ``super().__init__`` in one with its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in classes and node.name != "ServiceError":
            calls = (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))
            yield from ((classes[node.name], call) for call in calls if ast.unparse(call.func) == "super().__init__")
        elif isinstance(node, ast.Call) and (kind := classes.get(_get_name(node.func))) and not _has_own_code(kind):
            yield kind, node


def _has_own_code(kind: type[ServiceError]) -> bool:
    return "__init__" in vars(kind) and kind is not ServiceError


def _read_codes(path: Path, making: ast.Call) -> Iterator[str]:
    arguments = [*making.args[:1], *(keyword.value for keyword in making.keywords if keyword.arg == "code")]
    choices = arguments[:1]
    if choices and isinstance(choices[0], ast.IfExp):
        choices = [choices[0].body, choices[0].orelse]
    for choice in choices or [making]:
        if not (isinstance(choice, ast.Constant) and isinstance(choice.value, str)):
            raise UnreadableCode(f"{path}:{making.lineno}: write the code as a string: {ast.unparse(choice)}")
        yield choice.value


def _get_name(node: ast.expr) -> str:
    return getattr(node, "id", getattr(node, "attr", ""))


def write_errors() -> str:
    """One row a code: its status and its kind."""
    lines = ["# Errors\n"]
    lines.append(
        NOTE + 'Every error answers `{"error": {"message", "type", "param", "code", "hint", "request_id"}}`. '
        "The message names the value at fault, the hint names the way out; programs go by the code.\n"
    )
    lines += ["| code | status | kind |", "|---|---|---|"]
    for code, kinds in sorted(find_error_codes().items()):
        for kind in sorted(kinds, key=lambda kind: (kind.status, kind.__name__)):
            lines.append(f"| `{code}` | {int(kind.status)} | {(kind.__doc__ or '').strip().splitlines()[0]} |")
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
