"""Money as people read it: amounts under each other, shares as bars, what happened as sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Any

from rich.table import Table
from rich.text import Text

from luthier.billing.money import format_money
from luthier.cli.output import Column, Output, as_dict
from luthier.cli.text import escape, format_time, parse_time

BAR_WIDTH = 20
STATUS_STYLES = {
    "succeeded": "green",
    "created": "yellow",
    "needs_action": "yellow",
    "failed": "red",
    "canceled": "red",
}
TOTALS = ("deposited", "withdrawn", "granted", "adjusted", "held", "charged", "released", "refunded")
_WARN_PERCENT, _FULL_PERCENT = 80, 100


def align(amounts: Sequence[str]) -> list[str]:
    """Pad amounts on their right, so that their decimal points stand under each other in a column set to the right."""
    fractions = [len(amount) - (amount.find(".") if "." in amount else len(amount)) for amount in amounts]
    widest = max(fractions, default=0)
    return [amount + " " * (widest - own) for amount, own in zip(amounts, fractions, strict=True)]


def format_amounts(values: Iterable[int], currency: str) -> list[str]:
    """Return amounts for a column of money."""
    return align([format_money(value, currency) for value in values])


def format_changes(values: Iterable[int], currency: str) -> list[str]:
    """Return changes for a column of money: with their sign, and blank where nothing changed."""
    return align([f"{'+' if value > 0 else ''}{format_money(value, currency)}" if value else "" for value in values])


def make_bar(part: int, whole: int, *, width: int = BAR_WIDTH) -> Text:
    """Return a bar with its percentage; yellow from 80 %, red from 100 %."""
    percent = 100 if whole <= 0 < part else (part * 100 // whole if whole > 0 else 0)
    told = "<1" if percent == 0 < part else str(percent)
    style = "red" if percent >= _FULL_PERCENT else "yellow" if percent >= _WARN_PERCENT else "green"
    filled = min(width, max(1 if part > 0 else 0, percent * width // 100))
    return Text.assemble(("█" * filled, style), ("░" * (width - filled), "dim"), (f" {told:>3} %", style))


def show_balance(output: Output, balance: dict[str, Any], *, spent_this_month_nanos: int) -> None:
    """Print what an organization has, and what may be spent of it."""
    currency = _get_currency(balance)

    def say(name: str) -> str:
        return format_money(balance[f"{name}_nanos"], currency)

    rows = [
        ("available", balance["available_nanos"], f"cash {say('cash')}, credit {say('credit')}"),
        ("held", balance["held_nanos"], "for jobs that wait or run"),
        ("spent", balance["spent_nanos"], f"{format_money(spent_this_month_nanos, currency)} of it this month"),
    ]
    if balance["credit_limit_nanos"]:
        counts = balance["usable_credit_nanos"] == balance["credit_limit_nanos"]
        note = "so far the balance may go below zero" if counts else "counts once a card is on file"
        rows.append(("credit limit", balance["credit_limit_nanos"], note))
    rows.append(("may be spent", balance["spendable_nanos"], "by this key: every limit is in it"))
    output.line(
        Text.assemble((escape(balance["organization_name"]), "bold"), f"  {escape(balance['organization_id'])}")
    )
    output.line()
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(style="dim")
    for (name, nanos, note), amount in zip(rows, format_amounts((row[1] for row in rows), currency), strict=True):
        grid.add_row(name, Text(amount, "bold red" if nanos < 0 else "bold" if name == "available" else ""), note)
    output.render(grid)
    _warn_of_minimum(output, balance, currency)


def _warn_of_minimum(output: Output, balance: dict[str, Any], currency: str) -> None:
    if not balance["is_enforced"]:
        output.note("this server only meters: nothing is refused for want of money")
        return
    missing = balance["minimum_nanos"] - balance["available_nanos"] - balance["usable_credit_nanos"]
    if missing > 0:
        way_out = "luthier billing cards add, luthier billing pay AMOUNT" if balance["processor"] == "stripe" else (
            "an operator grants credit: luthier billing grant AMOUNT --reason TEXT"
        )  # fmt: skip
        least = format_money(balance["minimum_nanos"], currency)
        output.note(
            f"uploads and jobs need {least}: {format_money(missing, currency)} is missing; {way_out}", style="yellow"
        )


def show_statement(output: Output, statement: dict[str, Any]) -> None:
    """Print a month: what it opened with, every entry, what it closed with, and the totals."""
    currency = _get_currency(statement)
    opening, closing, lines = statement["opening"], statement["closing"], statement["data"]
    output.line(
        Text.assemble(("Statement of ", "dim"), (escape(statement["month"]), "bold"), ("  times in UTC", "dim"))
    )
    output.line()
    changes = format_changes([0, *(line["available_change_nanos"] for line in lines), 0], currency)
    held = format_changes([0, *(line["held_change_nanos"] for line in lines), 0], currency)
    left = format_amounts(
        [opening["available_nanos"], *(line["available_nanos"] for line in lines), closing["available_nanos"]], currency
    )
    days = [_format_utc(line["created_at"]) for line in lines]  # as the month, whose edges they must not seem to cross
    texts = [escape(line["text"]) for line in lines]
    rows = zip(
        ["", *days, ""],
        [Text("opening balance", "dim"), *map(Text, texts), Text("closing balance", "dim")],
        changes,
        held,
        left,
        strict=True,
    )
    columns = [
        Column("When"),
        Column("What", fixed=False),
        Column("Available", right=True),
        Column("Held", right=True),
        Column("Balance", right=True),
    ]
    output.table(columns, list(rows), empty="")
    totals = [(name, statement["totals"][f"{name}_nanos"]) for name in TOTALS]
    told = [(name, nanos) for name, nanos in totals if nanos]
    if told:
        output.line()
        _show_amounts(output, told, currency)


def _show_amounts(output: Output, pairs: Sequence[tuple[str, int]], currency: str) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    for (name, _), amount in zip(pairs, format_amounts((nanos for _, nanos in pairs), currency), strict=True):
        grid.add_row(name, amount)
    output.render(grid)


def _format_utc(value: object) -> str:
    at = parse_time(value)
    return at.astimezone(UTC).strftime("%d %b %H:%M") if at else "-"


def show_usage(output: Output, usage: dict[str, Any]) -> None:
    """Print what was used in a month under each name, with its share of the cost."""
    currency, by, data = _get_currency(usage), str(usage["by"]), usage["data"]
    output.line(Text.assemble(("Usage of ", "dim"), (escape(usage["month"]), "bold"), (f" by {escape(by)}", "dim")))
    output.line()
    costs = format_amounts([*(one["cost_nanos"] for one in data), usage["cost_nanos"]], currency)
    named = by == "key"  # the names of keys may be alike
    rows: list[Sequence[str | Text]] = [
        (
            escape(one["name"]),
            *([escape(one["id"])] if named else []),
            f"{one['jobs']:,}",
            f"{one['tokens']:,}",
            cost,
            _make_share(one["cost_nanos"], usage["cost_nanos"]),
        )
        for one, cost in zip(data, costs[:-1], strict=True)
    ]
    if len(rows) > 1:
        total = ("all", *([""] if named else []), f"{usage['jobs']:,}", f"{usage['tokens']:,}", costs[-1], "")
        rows.append([Text(cell, "bold") for cell in total])
    columns = [
        Column(by.capitalize(), fixed=by == "job"),
        *([Column("ID")] if named else []),
        Column("Jobs", right=True),
        Column("Tokens", right=True),
        Column("Cost", right=True),
        Column("Share"),
    ]
    output.table(columns, rows, empty="nothing was charged in this month")


def _make_share(part: int, whole: int) -> Text:
    percent = part * 100 // whole if whole > 0 else 0
    return Text.assemble(("█" * max(percent // 10, 1 if part > 0 else 0), "cyan"), (f" {percent} %", "dim"))


def show_limits(output: Output, limits: dict[str, Any], alerts: dict[str, Any]) -> None:
    """Print limits, each with a bar of what is used, and the alerts of the month."""
    currency, data = _get_currency(limits), limits["data"]
    columns = [
        Column("For"),
        Column("Name", fixed=False),
        Column("A month", right=True),
        Column("Used", right=True),
        Column("Left", right=True),
        Column("", fixed=True),
    ]
    monthly, used, left = (
        format_amounts([one[f"{name}_nanos"] for one in data], currency) for name in ("monthly", "used", "left")
    )
    rows = [
        (
            one["scope"],
            escape(one["name"]),
            monthly[n],
            used[n],
            left[n],
            make_bar(one["used_nanos"], one["monthly_nanos"]),
        )
        for n, one in enumerate(data)
    ]
    output.table(columns, rows, empty="no limits: luthier billing limits set AMOUNT")
    months = {one["month"] for one in data}
    told = [alert for alert in alerts["data"] if alert["month"] in months]
    if told:
        output.line()
    for alert in told:
        whose = f"{alert['scope']} {escape(alert['name'])}"
        amount = format_money(alert["limit_nanos"], currency)
        output.line(
            Text(f"{format_time(alert['created_at'])}  {alert['percent']} % of {amount} reached: {whose}", "yellow")
        )


def show_job_money(output: Output, money: dict[str, Any]) -> None:
    """Print the money of a job as the ledger's sentences, each with its time."""
    sentences = list(money["sentences"])
    times = [""] * (len(sentences) - len(money["data"])) + [format_time(entry["created_at"]) for entry in money["data"]]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for time, sentence in zip(times, sentences, strict=True):
        grid.add_row(time, Text(escape(sentence)))
    output.render(grid)


def show_job_totals(output: Output, money: dict[str, Any]) -> None:
    """Print what a job's money comes to."""
    currency = _get_currency(money)
    names = ("held", "charged", "released", "refunded")
    pairs = [(name, money[f"{name}_nanos"]) for name in names if money[f"{name}_nanos"]]
    _show_amounts(output, [*pairs, ("cost", money["cost_nanos"])], currency)


def show_cards(output: Output, cards: dict[str, Any]) -> None:
    """Print the cards."""
    rows = [
        (
            card["id"],
            f"{escape(card['brand'])} ending in {escape(card['last4'])}",
            f"{card['exp_month']:02d}/{card['exp_year']}",
            Text("default", "green") if card["is_default"] else "",
            format_time(card["created_at"]),
        )
        for card in cards["data"]
    ]
    columns = [Column("ID"), Column("Card", fixed=False), Column("Expires"), Column(""), Column("Added")]
    output.table(columns, rows, empty="no cards: luthier billing cards add")


def show_payments(output: Output, payments: dict[str, Any]) -> None:
    """Print payments, newest first; what is to be done or went wrong stands below each."""
    data = payments["data"]
    amounts = align([format_money(one["amount_nanos"], one["currency"]) for one in data])
    rows = [
        (one["id"], format_time(one["created_at"]), amount, output.styled(one["status"], STATUS_STYLES), _tell(one))
        for one, amount in zip(data, amounts, strict=True)
    ]
    columns = [
        Column("ID"),
        Column("When"),
        Column("Amount", right=True),
        Column("Status"),
        Column("What", fixed=False),
    ]
    output.table(columns, rows, empty="no payments: luthier billing pay AMOUNT")


def _tell(payment: dict[str, Any]) -> str:
    parts = [f"{'automatic, ' if payment['is_automatic'] else ''}{payment['card']}"]
    parts += [
        f"{format_money(nanos, payment['currency'])} {name}"
        for name in ("refunded", "disputed")
        if (nanos := payment[f"{name}_nanos"])
    ]
    if payment["failure_message"]:
        parts.append(payment["failure_message"])
    if payment["action_url"]:
        parts.append(f"confirm it at {payment['action_url']}")
    return escape("; ".join(parts))


def show_recharge(output: Output, recharge: dict[str, Any]) -> None:
    """Print when the card is charged by itself."""
    currency = _get_currency(recharge)
    if recharge["enabled"]:
        below, up_to = (format_money(recharge[f"{name}_nanos"], currency) for name in ("threshold", "target"))
        output.line(Text.assemble(("on", "bold green"), f": below {below} the default card is charged up to {up_to}"))
    else:
        output.line(Text.assemble(("off", "bold"), ": switch it on with --threshold AMOUNT --target AMOUNT"))
    if recharge["notice"]:
        output.line(Text(escape(recharge["notice"]), "yellow"))


def _get_currency(answer: dict[str, Any]) -> str:
    return str(as_dict(answer).get("currency") or "USD")
