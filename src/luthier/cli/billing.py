"""``luthier billing``: what there is, what was spent and on what. Paying, limits and the operator's own stand beside it."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from luthier.cli import billing_limits, billing_operator, billing_payments
from luthier.cli.options import AsJson, BaseUrl, Command, JobId, make_group
from luthier.cli.output import Output, as_dict

if TYPE_CHECKING:
    from luthier.cli.connection import Connection

app = make_group(
    """See the balance, statements and usage; set limits; pay.

    The operator's own (organizations, grant, adjust, credit-limit, refund, verify) work on the database of the server's
    home, without a server or a key.
    """
)

Month = Annotated[
    str | None,
    typer.Option("--month", metavar="YYYY-MM", help="In UTC. Default: the present one.", show_default=False),
]


class By(StrEnum):
    """What the rows of a usage are."""

    PROJECT = "project"
    KEY = "key"
    MODEL = "model"
    JOB = "job"


@app.command("balance", cls=Command)
def balance(*, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Show what the organization has, and what may be spent.

    Available is what nothing is held of; a job's price is held from its start to its end.

    Examples:
      luthier billing balance
      luthier billing balance --json | jq -r .available
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get("/api/billing/balance"))
        this_month = {} if as_json else as_dict(connection.get("/api/billing/usage"))
    if as_json:
        output.write_json(answer)
        return
    from luthier.cli import money_views

    money_views.show_balance(output, answer, spent_this_month_nanos=this_month["cost_nanos"])


@app.command("statement", cls=Command)
def statement(
    *,
    month: Month = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: a line an entry, amounts as plain numbers.")
    ] = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Show a month's movements of money.

    Each with what it left.

    Examples:
      luthier billing statement
      luthier billing statement --month 2026-01 --csv > january.csv
      luthier billing statement --json | jq -r '.data[].text'
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        if as_csv:
            _copy_csv(connection, month)
            return
        answer = _get_statement(connection, month)
    if as_json:
        output.write_json(answer)
        return
    from luthier.cli import money_views

    money_views.show_statement(output, answer)


def _copy_csv(connection: Connection, month: str | None) -> None:
    with connection.stream("/api/billing/statement", params={"format": "csv", **_of_month(month)}) as response:
        for text in response.iter_text():
            sys.stdout.write(text.replace("\r\n", "\n"))
    sys.stdout.flush()


def _get_statement(connection: Connection, month: str | None) -> dict[str, Any]:
    """Return the whole statement: its pages are put together."""
    answer = as_dict(connection.get("/api/billing/statement", _of_month(month)))
    after = answer.pop("next_after", None)
    while after is not None:
        # The first page says which month it is: it may end while the others are read.
        page = as_dict(connection.get("/api/billing/statement", {"month": answer["month"], "after": after}))
        answer["data"] += page["data"]
        after = page["next_after"]
    return answer


@app.command("usage", cls=Command)
def usage(
    *,
    by: Annotated[By, typer.Option("--by", help="What the rows are: project, key, model or job.")] = By.PROJECT,
    month: Month = None,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Show what was used in a month: jobs, tokens and cost.

    A job counts in the month of its charge; its cost is net of what was refunded since.

    Examples:
      luthier billing usage
      luthier billing usage --by model --month 2026-01
      luthier billing usage --by job --json | jq -r '.data[] | [.id, .tokens, .cost] | @tsv'
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get("/api/billing/usage", {"by": by.value, **_of_month(month)}))
    if as_json:
        output.write_json(answer)
        return
    from luthier.cli import money_views

    money_views.show_usage(output, answer)


@app.command("job", cls=Command)
def job(job_id: JobId, *, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Show the money of one job.

    What was quoted, held, charged, released and refunded.

    Examples:
      luthier billing job ft-0b5e…
      luthier billing job ft-0b5e… --json | jq -r .cost
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = get_job_money(connection, job_id)
    if as_json:
        output.write_json(answer)
        return
    from luthier.cli import money_views

    money_views.show_job_money(output, answer)
    output.line()
    money_views.show_job_totals(output, answer)


def get_job_money(connection: Connection, job_id: str) -> dict[str, Any]:
    """Return what became of a job's money."""
    return as_dict(connection.get(f"/api/billing/jobs/{quote(job_id, safe='')}"))


def _of_month(month: str | None) -> dict[str, str]:
    return {"month": month} if month else {}


app.add_typer(billing_limits.app, name="limits")
app.add_typer(billing_payments.cards, name="cards")
app.command("pay", cls=Command)(billing_payments.pay)
app.add_typer(billing_payments.payments, name="payments")
app.command("auto-recharge", cls=Command)(billing_payments.auto_recharge)
app.command("organizations", cls=Command)(billing_operator.organizations)
app.command("grant", cls=Command)(billing_operator.grant)
app.command("adjust", cls=Command, context_settings=billing_operator.SIGNED)(billing_operator.adjust)
app.command("credit-limit", cls=Command)(billing_operator.credit_limit)
app.command("refund", cls=Command)(billing_operator.refund)
app.command("verify", cls=Command)(billing_operator.verify)
