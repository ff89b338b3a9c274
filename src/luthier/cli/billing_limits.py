"""``luthier billing limits``: what the organization, its projects and its keys may spend a month."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from luthier.cli.exits import Exit, Failure
from luthier.cli.options import AsJson, BaseUrl, Command, make_listing_group
from luthier.cli.output import Output, as_dict

if TYPE_CHECKING:
    from luthier.cli.connection import Connection

Project = Annotated[
    str | None,
    typer.Option("--project", metavar="PROJECT", help="Of this project, by id or slug.", show_default=False),
]
Key = Annotated[
    str | None, typer.Option("--key-id", metavar="KEY", help="Of this API key, by id, key-…", show_default=False)
]


def list_limits(*, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """List the limits, what is used of each, and this month's alerts.

    Examples:
      luthier billing limits list
      luthier billing limits list --json | jq -r '.data[] | [.scope, .name, .left] | @tsv'
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        limits = as_dict(connection.get("/api/billing/limits"))
        alerts = as_dict(connection.get("/api/billing/alerts"))
    if as_json:
        output.write_json({**limits, "alerts": alerts["data"]})
        return
    from luthier.cli import money_views

    money_views.show_limits(output, limits, alerts)


app = make_listing_group("List, set and remove monthly spending limits.", list_limits)


@app.command("set", cls=Command)
def set_limit(
    amount: Annotated[
        str, typer.Argument(metavar="AMOUNT", help="The most a month; 0 allows nothing.", show_default=False)
    ],
    *,
    project: Project = None,
    key: Key = None,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Limit what may be spent a month: by the organization, or by one project or key of it.

    Takes an admin key. A limit below what is used already ends the newest jobs, after a warning and a grace.

    Examples:
      luthier billing limits set 200
      luthier billing limits set 50 --project default
      luthier billing limits set 5.50 --key-id key-0b5e…
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        limit = as_dict(connection.put(_find_path(connection, project, key), {"monthly": amount}))
    if as_json:
        output.write_json(limit)
        return
    from luthier.billing.money import format_money

    monthly, used = (format_money(limit[f"{name}_nanos"], limit["currency"]) for name in ("monthly", "used"))
    output.note(f"{limit['scope']} {limit['name']} may spend {monthly} a month; {used} of it is used")


@app.command("remove", cls=Command)
def remove_limit(
    *, project: Project = None, key: Key = None, as_json: AsJson = False, base_url: BaseUrl = None
) -> None:
    """Take a limit away: the organization's, or that of one project or key. Takes an admin key.

    Examples:
      luthier billing limits remove
      luthier billing limits remove --project default
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        removed = as_dict(connection.delete(_find_path(connection, project, key)))
    if as_json:
        output.write_json(removed)
        return
    output.note(f"{removed['scope']} {removed['scope_id']} has no limit now")


def _find_path(connection: Connection, project: str | None, key: str | None) -> str:
    """Return the route of a scope; the organization is the one that our key belongs to."""
    if project and key:
        raise Failure(
            "two_scopes",
            "a limit is of a project or of a key, not of both",
            exit_code=Exit.USAGE,
            hint="set one after the other: the tighter one decides",
        )
    scope, scope_id = ("project", project) if project else ("key", key)
    if not scope_id:
        scope, scope_id = "organization", str(as_dict(connection.get("/v3/whoami")).get("organization_id"))
    return f"/api/billing/limits/{scope}/{quote(scope_id, safe='')}"
