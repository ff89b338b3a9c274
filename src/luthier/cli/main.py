"""The entry point: every command in one list, and the one place where a failure becomes an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from luthier.cli import account, billing, files, jobs, keys, models, serve
from luthier.cli.exits import MEANINGS, Exit, Failure
from luthier.cli.options import CONTEXT, Command, Group
from luthier.cli.version import find_version
from luthier.errors import ServiceError

HELP = """Fine-tuning as a service that you run yourself.

First steps:
  luthier serve                                              start a server
  luthier files check data.jsonl                             check your data
  luthier ft create data.jsonl --model luthier/tiny --watch  train on it
  luthier ft download JOB                                    get the model

Every command takes --json, and --help shows examples of its use.
"""

EPILOG = "\n".join(["\b", "Exit codes:", *(f"  {code.value:<4} {text}" for code, text in MEANINGS.items())])


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"luthier {find_version()}")
        raise typer.Exit


app = typer.Typer(
    name="luthier",
    cls=Group,
    help=HELP,
    epilog=EPILOG,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    invoke_without_command=True,
)


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version  # its callback has acted
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("serve", cls=Command)(serve.serve)
app.command("api", cls=Command)(serve.api)
app.command("supervise", cls=Command)(serve.supervise)
app.command("login", cls=Command)(account.login)
app.command("whoami", cls=Command)(account.whoami)
app.command("status", cls=Command)(account.status)
app.add_typer(files.app, name="files")
app.add_typer(jobs.app, name="ft")
app.command("watch", cls=Command)(jobs.watch)
app.command("list-events", cls=Command)(jobs.events)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(billing.app, name="billing")


def run() -> None:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # a terminal without UTF-8 still shows all
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`| head`). Python flushes stdout once more at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.OK
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        return app(arguments, prog_name="luthier", standalone_mode=False) or Exit.OK
    except Failure as failure:
        return _report(failure, as_json="--json" in arguments)
    except ServiceError as error:  # of the operator's own commands, which run the service in this process
        refused = Failure(error.code, error.message, hint=error.hint, exit_code=Exit.REFUSED)
        return _report(refused, as_json="--json" in arguments)
    except typer.TyperException as error:
        return _report(_explain_usage(error), as_json="--json" in arguments)
    except BrokenPipeError:
        raise
    except OSError as error:  # of a file or folder that was named: the network's errors are Failures
        where = f": {error.filename}" if error.filename else ""
        failed = Failure("file_error", f"{error.strerror or error}{where}", exit_code=Exit.USAGE)
        return _report(failed, as_json="--json" in arguments)
    except (typer.Abort, KeyboardInterrupt):
        sys.stderr.write("\n")
        return Exit.INTERRUPTED


def _explain_usage(error: typer.TyperException) -> Failure:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "luthier"
    message = error.format_message().rstrip(".").replace("\n\t", " ")
    return Failure("usage", message, exit_code=Exit.USAGE, hint=f"{command} --help")


def _report(failure: Failure, *, as_json: bool) -> Exit:
    from luthier.cli import failures

    failures.show(failure, as_json=as_json)
    return failure.exit_code
