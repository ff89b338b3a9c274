"""``luthier login``, ``whoami`` and ``status``: which server, as whom, and how it is."""

from __future__ import annotations

import os
import sys

from luthier.cli.exits import Exit, Failure
from luthier.cli.options import AsJson, BaseUrl
from luthier.cli.output import Column, Output, as_dict
from luthier.cli.text import format_time

DEFAULT_URL = "http://127.0.0.1:4400"


def login(*, base_url: BaseUrl = None, as_json: AsJson = False) -> None:
    """Store the server and the API key to use.

    Asks for what is not given. The key is read without echo, from stdin when that is not a terminal,
    or from LUTHIER_API_KEY; it is verified, then written to credentials.json under LUTHIER_HOME,
    readable by you alone. The key is never an argument: other users could read it there.

    Examples:
      luthier login
      luthier login --base-url https://tune.example.org
      luthier login --base-url https://tune.example.org < key.txt
    """
    from luthier.cli import config
    from luthier.cli.connection import Connection

    output = Output(as_json=as_json)
    url = config.normalise_url(base_url or os.environ.get("LUTHIER_BASE_URL") or _ask_url())
    candidate = config.Config(url, os.environ.get("LUTHIER_API_KEY") or _ask_key(url))
    with Connection(candidate) as connection:
        identity = as_dict(connection.get("/v3/whoami"))
    path = config.store(candidate)
    if as_json:
        output.write_json({"base_url": url, "credentials": str(path), "identity": identity})
        return
    output.fields([("server", url), *_describe(identity), ("stored in", str(path))])


def whoami(*, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Show the server, the project and the key in use.

    Examples:
      luthier whoami
      luthier whoami --json | jq -r .project_slug
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        identity = as_dict(connection.get("/v3/whoami"))
        server = connection.base_url
    if as_json:
        output.write_json({**identity, "base_url": server})
    else:
        output.fields([("server", server), *_describe(identity)])


def _describe(identity: dict[str, object]) -> list[tuple[str, str]]:
    return [
        ("project", f"{identity.get('project_name')} ({identity.get('project_slug')})"),
        ("organization", str(identity.get("organization_name"))),
        ("key", str(identity.get("api_key_name") or identity.get("api_key_id"))),
    ]


def _ask_url() -> str:
    if not sys.stdin.isatty():
        return DEFAULT_URL
    sys.stderr.write(f"Server [{DEFAULT_URL}]: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip() or DEFAULT_URL


def _ask_key(url: str) -> str:
    if sys.stdin.isatty():
        import getpass

        key = getpass.getpass(f"API key for {url} (not shown): ", stream=sys.stderr)
    else:
        key = sys.stdin.readline()
    key = key.strip()
    if not key:
        raise Failure(
            "no_api_key",
            "no API key was given",
            exit_code=Exit.USAGE,
            hint="`luthier serve` prints the admin key at its first start; more with: luthier keys create --name NAME",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise Failure("bad_api_key", "an API key has neither spaces nor special characters", exit_code=Exit.USAGE)
    return key


def status(*, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Show whether jobs can run, and how many wait.

    Examples:
      luthier status
      luthier status --json | jq .queued
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get("/api/status"))
        server = connection.base_url
    if as_json:
        output.write_json({**answer, "base_url": server})
        return
    supervisors = answer.get("supervisors") or []
    output.fields(
        [
            ("server", f"{server}, version {answer.get('version')}"),
            (
                "jobs",
                f"{answer.get('running')} running, {answer.get('queued')} queued, {answer.get('pending')} pending",
            ),
            ("slots", f"{answer.get('running')} of {answer.get('slots')} in use"),
        ]
    )
    if not supervisors:
        output.note(
            "no supervisor is alive, so no job runs: start one with luthier serve or luthier supervise", style="yellow"
        )
        return
    output.line()
    rows = [
        (one["host"], str(one["pid"]), str(one["slots"]), format_time(one.get("started_at"))) for one in supervisors
    ]
    output.table(
        [
            Column("Supervisor", fixed=False),
            Column("Process", right=True),
            Column("Slots", right=True),
            Column("Since"),
        ],
        rows,
        empty="",
    )
