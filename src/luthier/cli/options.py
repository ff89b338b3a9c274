"""What every command has in common: its options, its groups and the look of its help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from luthier.cli import reading

HELP_WIDTH = 100
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH}

AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON and nothing else on stdout; errors as JSON on stderr.")
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="Server to use; else LUTHIER_BASE_URL, else the one stored by `luthier login`.",
        show_default=False,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, ft-…", show_default=False)]
FileId = Annotated[str, typer.Argument(metavar="FILE", help="Id of the file, file-…", show_default=False)]


class Command(TyperCommand):
    """A command whose help keeps its examples as they are written, and lists its options under headings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments without typer's slow reader."""
        reading.install(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Name the arguments as the help below does: ``FILE``, and ``FILE…`` for one or more."""
        arguments = (param for param in self.get_params(ctx) if param.param_type_name == "argument")
        return ["[OPTIONS]", *(_name_argument(argument) for argument in arguments)]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the help, keeping the lines of each paragraph that has indented ones."""
        del ctx
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text("\n\n".join(f"\b\n{text}" if "\n  " in text else text for text in paragraphs))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then each heading's options (``rich_help_panel`` names it)."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                default = "Arguments" if param.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(param, "rich_help_panel", None) or default, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl([(_without_type(names), text) for names, text in records])


class Group(TyperGroup):
    """A group that lists its commands before its own few options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments without typer's slow reader."""
        reading.install(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the help as a command does."""
        Command.format_help_text(self, ctx, formatter)  # type: ignore[arg-type] # both have a help, all it needs

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands first: they are what the reader looks for."""
        self.format_commands(ctx, formatter)
        Command.format_options(self, ctx, formatter)  # type: ignore[arg-type] # both have get_params, all it needs


def _name_argument(argument: Any) -> str:
    return str(argument.metavar) if argument.required else f"[{argument.metavar}]"


def _without_type(names: str) -> str:
    """``JOB <str>`` → ``JOB``: the name says what it is. Choices are kept."""
    return re.sub(r" <(\w+( range)?|list\[\w+\])>$", "", names)


def make_listing_group(help: str, list_command: Callable[..., None]) -> typer.Typer:  # noqa: A002 - typer's own name
    """Return a group of commands that lists its things when no command is named, as its command ``list`` does."""
    group = make_group(help)

    @group.callback()
    def list_by_default(context: typer.Context, *, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
        if context.invoked_subcommand is None:
            list_command(as_json=as_json, base_url=base_url)

    group.command("list", cls=Command)(list_command)
    return group


def make_group(help: str, *, epilog: str | None = None) -> typer.Typer:  # noqa: A002 - typer's own name
    """Return a group of commands that prints its help when no command is named."""
    group = typer.Typer(
        cls=Group,
        help=help,
        epilog=epilog,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings=CONTEXT,
        invoke_without_command=True,
    )

    @group.callback()
    def print_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return group
