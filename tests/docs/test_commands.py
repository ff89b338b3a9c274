"""The commands that the documents name are there, with the options that they name."""

from __future__ import annotations

import re
import shlex

import typer

from luthier.cli.main import app

CLI = typer.main.get_command(app)
INDENTED = re.compile(r"^ {4,}(?:\$ )?(?:\.venv/bin/)?((?:luthier|make) .*)$", re.MULTILINE)
INLINE = re.compile(r"`(?:\.venv/bin/)?((?:luthier|make) [^`]*)`")
NOT_A_COMMAND = ("luthier worker", "luthier COMMAND")  # a process's title, and any command


def list_pages(root):
    yield root / "README.md"
    yield root / "CONTRIBUTING.md"
    yield from sorted((root / "docs").rglob("*.md"))


def find_problem(text, targets):
    """Say what of a command line is not there, None when all of it is."""
    words = shlex.split(re.split(r"[|<>;&#]|\$\(", text.replace("…", ""))[0].rstrip("\\ "), comments=True)
    if words[0] == "make":
        return next((f"no target {word}" for word in words[1:] if "=" not in word and word not in targets), None)
    command, rest = CLI, words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return f"no command {rest[0]}"
        command = command.commands[rest.pop(0)]
    known = {name for param in command.params for name in [*param.opts, *param.secondary_opts]} | {"--help", "-h"}
    return next((f"no option {word}" for word in rest if re.match("-[^0-9]", word) and word not in known), None)


def test_documents_when_they_name_a_command_then_it_exists(root):
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE))
    named = [
        (f"{page.relative_to(root)}: {text}", problem)
        for page in list_pages(root)
        for text in [*INDENTED.findall(page.read_text()), *INLINE.findall(page.read_text())]
        if not text.startswith(NOT_A_COMMAND) and (problem := find_problem(text, targets))
    ]
    assert named == []


def test_readme_when_read_then_it_names_the_first_commands(root):
    text = (root / "README.md").read_text()
    for command in ("make demo", "luthier serve", "luthier files check", "luthier ft create"):
        assert command in text
