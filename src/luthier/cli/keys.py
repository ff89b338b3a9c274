"""``luthier keys``: API keys of the project. Takes an admin key."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import quote

import typer

from luthier.cli.exits import Exit, Failure
from luthier.cli.options import AsJson, BaseUrl, Command, Yes, make_group
from luthier.cli.output import Column, Output, as_dict
from luthier.cli.text import escape, format_time, parse_time

app = make_group("Create, list and revoke API keys (takes an admin key).")

UNITS_S = {"h": 3600, "d": 86_400, "w": 604_800}


@app.command("create", cls=Command)
def create(
    *,
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="Who or what will use it.", show_default=False)],
    admin: Annotated[bool, typer.Option("--admin", help="The key may make and revoke keys.")] = False,
    expires_in: Annotated[
        str | None,
        typer.Option("--expires-in", metavar="TIME", help="End the key by itself: 12h, 30d or 4w. Default: never."),
    ] = None,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Create an API key and print it, this once.

    Examples:
      luthier keys create --name laptop
      luthier keys create --name ci --expires-in 30d > ci.key
    """
    from luthier.cli.connection import connect

    expires_at = _compute_expiry(expires_in) if expires_in else None
    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        key = as_dict(connection.post("/api/keys", {"name": name, "is_admin": admin, "expires_at": expires_at}))
    if as_json:
        output.write_json(key)
        return
    output.line(str(key.get("secret")))
    output.note("shown this once: keep it where only its user can read it")


@app.command("list", cls=Command)
def list_keys(*, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """List the keys of the project.

    Revoked and expired ones too; the keys themselves are not kept.

    Examples:
      luthier keys list
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get("/api/keys"))
    if as_json:
        output.write_json(answer)
        return
    rows = [
        (
            key["id"],
            key.get("name", ""),
            key.get("hint", ""),
            "admin" if key.get("is_admin") else "user",
            output.styled(_describe_state(key), {"valid": "green", "revoked": "red", "expired": "red"}),
            format_time(key.get("last_used_at")),
        )
        for key in answer.get("data", [])
    ]
    columns = [Column("ID"), Column("Name", fixed=False), *map(Column, ("Key", "Role", "State", "Last used"))]
    output.table(columns, rows, empty="no keys")


@app.command("revoke", cls=Command)
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, from `keys list`.", show_default=False)],
    *,
    yes: Yes = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Revoke a key, at once and for good.

    Examples:
      luthier keys revoke key-0b5e…
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        output.require_consent(f"Revoke {key_id}?", yes=yes)
        key = as_dict(connection.delete(f"/api/keys/{quote(key_id, safe='')}"))
    if as_json:
        output.write_json(key)
    else:
        output.note(f"revoked {key_id} ({escape(key.get('name', ''))})")


def _describe_state(key: dict[str, object]) -> str:
    if key.get("revoked_at"):
        return "revoked"
    expires_at = parse_time(key.get("expires_at"))
    if expires_at is None:
        return "valid"
    return "expired" if expires_at <= datetime.now(UTC) else f"until {format_time(key.get('expires_at'))}"


def _compute_expiry(text: str) -> str:
    match = re.fullmatch(r"(\d{1,5})([hdw])", text.strip())
    if match is None:
        raise Failure(
            "bad_expiry",
            f"not a length of time: {text}",
            exit_code=Exit.USAGE,
            hint="write a number and h, d or w, for example 30d",
        )
    return (datetime.now(UTC) + timedelta(seconds=int(match[1]) * UNITS_S[match[2]])).isoformat()
