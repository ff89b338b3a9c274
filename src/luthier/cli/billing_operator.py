"""The operator's own part of ``luthier billing``: on the database of the server's home, without a server or a key."""

from __future__ import annotations

import getpass
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from luthier.cli.exits import Exit, Failure
from luthier.cli.options import CONTEXT, AsJson
from luthier.cli.output import Column, Output
from luthier.cli.serve import load_settings, open_database

if TYPE_CHECKING:
    from luthier.billing.ledger import EntryView
    from luthier.billing.policy import Policy
    from luthier.db import Database, Session

SIGNED: Final = {**CONTEXT, "ignore_unknown_options": True}  # -5 is an amount, not an option

OrganizationAndAmount = Annotated[
    list[str],
    typer.Argument(
        metavar="[ORGANIZATION] AMOUNT",
        help="An organization by its id or a project's slug (left out, when there is just one), and an amount.",
        show_default=False,
    ),
]
Home = Annotated[
    Path | None,
    typer.Option(
        "--home", metavar="DIR", help="The server's home. Default: LUTHIER_HOME, else ~/.luthier.", show_default=False
    ),
]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; it stands in the statement.", show_default=False)
]
Key = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key", metavar="TEXT", help="The same key again has no second effect.", show_default=False
    ),
]


@dataclass(frozen=True)
class Desk:
    """The server's database and terms, and who sits at it."""

    database: Database
    policy: Policy
    operator: str
    now: datetime


@contextmanager
def _open(home: Path | None) -> Iterator[Desk]:
    """Open the database of a home. Raises Failure where there is none, ServiceError when it cannot be used."""
    from sqlalchemy.exc import SQLAlchemyError

    from luthier.billing.policy import make_policy
    from luthier.clock import SystemClock
    from luthier.db import outages

    settings = load_settings(home, None, None, None)
    if settings.database_url is None and not settings.database_path.exists():
        raise Failure(
            "no_database",
            f"there is no Luthier in this home: {settings.home}",
            exit_code=Exit.REFUSED,
            hint="name the server's home with --home or LUTHIER_HOME; luthier serve makes one",
        )
    policy = make_policy(settings)
    database = open_database(settings)
    try:
        yield Desk(database, policy, _find_operator(), SystemClock().now())
    except SQLAlchemyError as error:
        outage = outages.find_outage(error)
        if outage is None:
            raise
        raise outages.describe(outage) from error
    finally:
        database.dispose()


def _find_operator() -> str:
    """Return who is at the machine, for the ledger."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid-{os.getuid()}"


def _choose(tx: Session, words: list[str]) -> tuple[str, str, str]:
    """Return an organization's id and name, and the amount, from ``[ORGANIZATION] AMOUNT``."""
    from luthier.accounts import service as accounts

    if not 1 <= len(words) <= 2:  # noqa: PLR2004  an organization and an amount
        raise Failure(
            "usage",
            f"expected [ORGANIZATION] AMOUNT: {' '.join(words)}",
            exit_code=Exit.USAGE,
            hint="luthier billing grant --help",
        )
    organization = accounts.choose_organization(tx, words[0] if len(words) > 1 else None)
    return organization.id, organization.name, words[-1]


def organizations(home: Home = None, *, as_json: AsJson = False) -> None:
    """List all organizations with their projects and balances.

    Examples:
      luthier billing organizations
      luthier billing organizations --home /var/lib/luthier --json
    """
    from luthier.accounts import service as accounts
    from luthier.billing import ledger
    from luthier.billing.money import format_decimal

    output = Output(as_json=as_json)
    with _open(home) as desk, desk.database.read() as tx:
        found = [
            (one, accounts.list_projects(tx, one.id), ledger.get_balance(tx, one.id))
            for one in accounts.list_organizations(tx)
        ]
        currency = desk.policy.currency
    if as_json:
        data = [
            {
                "id": one.id,
                "name": one.name,
                "projects": [project.slug for project in projects],
                **vars(balance),
                "available_nanos": balance.available_nanos,
                "available": format_decimal(balance.available_nanos),
            }
            for one, projects, balance in found
        ]
        output.write_json({"object": "list", "currency": currency, "data": data})
        return
    from luthier.cli import money_views

    amounts = [
        money_views.format_amounts(column, currency)
        for column in zip(
            *((balance.available_nanos, balance.held_nanos, balance.spent_nanos) for _, _, balance in found),
            strict=True,
        )
    ]
    rows = [
        (one.id, one.name, ", ".join(project.slug for project in projects), *money)
        for (one, projects, _), *money in zip(found, *amounts, strict=True)
    ]
    columns = [
        Column("ID"),
        Column("Name", fixed=False),
        Column("Projects", fixed=False),
        *(Column(title, right=True) for title in ("Available", "Held", "Spent")),
    ]
    output.table(columns, rows, empty="no organization yet: luthier serve makes the first one")


def grant(
    words: OrganizationAndAmount,
    *,
    reason: Reason,
    key: Key = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Give promotional credit.

    Examples:
      luthier billing grant 100 --reason "a start"
      luthier billing grant acme 20.50 --reason "ticket 17" --idempotency-key 17
    """
    from luthier.billing import ledger
    from luthier.billing.ledger import Cause
    from luthier.billing.money import parse_amount

    with _open(home) as desk:
        with desk.database.transaction() as tx:
            organization_id, name, text = _choose(tx, words)
            nanos = parse_amount(text)
            entry = ledger.grant(
                tx,
                organization_id,
                nanos,
                key=key or uuid.uuid4().hex,
                cause=Cause("operator", desk.operator),
                note=f"Granted {desk.policy.format(nanos)} of credit: {_require_reason(reason)}",
                now=desk.now,
            )
        _show_entry(desk, entry, name, as_json=as_json)


def adjust(
    words: OrganizationAndAmount,
    *,
    reason: Reason,
    key: Key = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Correct the cash by hand, up or down.

    With a minus it goes down, below zero too.

    Examples:
      luthier billing adjust acme 12.50 --reason "paid by bank transfer, invoice 9"
      luthier billing adjust acme -12.50 --reason "that was another's"
    """
    from luthier.billing import ledger
    from luthier.billing.ledger import Cause
    from luthier.billing.money import parse_amount

    with _open(home) as desk:
        with desk.database.transaction() as tx:
            organization_id, name, text = _choose(tx, words)
            nanos = parse_amount(text, allow_negative=True)
            direction = "up" if nanos > 0 else "down"
            entry = ledger.adjust(
                tx,
                organization_id,
                nanos,
                key=key or uuid.uuid4().hex,
                cause=Cause("operator", desk.operator),
                note=f"Corrected {direction} by {desk.policy.format(abs(nanos))}: {_require_reason(reason)}",
                now=desk.now,
            )
        _show_entry(desk, entry, name, as_json=as_json)


def credit_limit(words: OrganizationAndAmount, home: Home = None, *, as_json: AsJson = False) -> None:
    """Set how far below zero a balance may go.

    0 is not at all. With card payments it counts once a card is on file.

    Examples:
      luthier billing credit-limit acme 50
      luthier billing credit-limit 0
    """
    from luthier.billing import limits
    from luthier.billing.money import parse_amount, parse_decimal

    output = Output(as_json=as_json)
    with _open(home) as desk, desk.database.transaction() as tx:
        organization_id, name, text = _choose(tx, words)
        nanos = 0 if parse_decimal(text) == 0 else parse_amount(text)
        line = limits.set_credit_limit(tx, organization_id, nanos, now=desk.now)
        amount = desk.policy.format(line.limit_nanos)
        counts = line.has_card or desk.policy.processor == "manual"
    if as_json:
        output.write_json({"organization_id": organization_id, **vars(line)})
        return
    output.note(f"the balance of {name} may go {amount} below zero" + ("" if counts else ", once a card is on file"))


def refund(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, ft-…", show_default=False)],
    amount: Annotated[
        str | None, typer.Argument(metavar="AMOUNT", help="Default: all that it was charged.", show_default=False)
    ] = None,
    *,
    reason: Reason,
    key: Key = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Give back what a job was charged.

    It goes to where it came from, cash or credit; the job's log tells it, too.

    Examples:
      luthier billing refund ft-0b5e… --reason "trained on the wrong file by our fault"
      luthier billing refund ft-0b5e… 1.50 --reason "half of it"
    """
    from luthier.accounts import service as accounts
    from luthier.billing.money import parse_amount
    from luthier.jobs import refunds

    with _open(home) as desk:
        nanos = None if amount is None else parse_amount(amount)
        with desk.database.transaction() as tx:
            entry = refunds.refund(
                tx, job_id, nanos, key=key or uuid.uuid4().hex, reason=_require_reason(reason), now=desk.now
            )
            name = accounts.choose_organization(tx, entry.organization_id).name
        _show_entry(desk, entry, name, as_json=as_json)


def _require_reason(reason: str) -> str:
    if not reason.strip():
        raise Failure(
            "reason_missing",
            "a reason must not be empty: it stands in the statement",
            exit_code=Exit.USAGE,
            hint='for example --reason "support ticket 17"',
        )
    return " ".join(reason.split())


def _show_entry(desk: Desk, entry: EntryView, name: str, *, as_json: bool) -> None:
    from luthier.billing import ledger
    from luthier.billing.money import format_decimal

    output = Output(as_json=as_json)
    with desk.database.read() as tx:
        available = ledger.get_balance(tx, entry.organization_id).available_nanos
    if as_json:
        output.write_json(
            {
                "organization_id": entry.organization_id,
                "seq": entry.seq,
                "created_at": entry.created_at.isoformat(),
                "kind": entry.kind,
                "text": entry.note,
                "available_nanos": available,
                "available": format_decimal(available),
            }
        )
        return
    output.line(entry.note)
    output.note(f"{name} has {desk.policy.format(available)} available now")


def verify(home: Home = None, *, as_json: AsJson = False) -> None:
    """Recompute the whole ledger.

    Every hash, every sum, every hold. Names the first entry of each organization that is not as it was written, and exits with 1 then. It may run beside
    a server; each day a server does the same by itself.

    Examples:
      luthier billing verify
      luthier billing verify --home /var/lib/luthier --json | jq .heads
    """
    from luthier.billing import audit, statements

    output = Output(as_json=as_json)
    with _open(home) as desk:
        with desk.database.read() as tx:
            total = statements.count_entries(tx)
        with output.progress("Verifying", unit="count") as advance:
            result = audit.verify(desk.database, on_progress=lambda count: advance(count, total))
    if as_json:
        problems = [vars(problem) for problem in result.problems]
        output.write_json({**vars(result), "is_sound": not problems, "problems": problems})
    elif result.problems:
        for problem in result.problems:
            output.line(f"{problem.organization_id}: {problem.message}", style="red")
    else:
        entries = f"{result.entries:,} {'entry' if result.entries == 1 else 'entries'}"
        whose = f"{result.organizations:,} organization{'' if result.organizations == 1 else 's'}"
        output.line(f"the books balance: {entries} of {whose}, each as it was written")
    if result.problems:
        raise typer.Exit(Exit.NEGATIVE)
