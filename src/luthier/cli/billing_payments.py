"""``luthier billing cards``, ``pay``, ``payments`` and ``auto-recharge``."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

from luthier.cli.exits import Exit, Failure
from luthier.cli.options import AsJson, BaseUrl, Command, Yes, make_listing_group
from luthier.cli.output import Output, as_dict

if TYPE_CHECKING:
    from luthier.cli.connection import Connection

POLL_S: Final = 2.0
OWNER_MAX_S: Final = 30 * 60.0  # the processor's page is good for longer; who comes back later looks again

CardId = Annotated[str, typer.Argument(metavar="CARD", help="Id of the card, from `cards list`.", show_default=False)]
PAYMENTS_LIMIT: Final = 20


def list_cards(*, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """List the cards; payments are charged to the default one.

    Examples:
      luthier billing cards list
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get("/api/billing/cards"))
    if as_json:
        output.write_json(answer)
        return
    from luthier.cli import money_views

    money_views.show_cards(output, answer)


cards = make_listing_group("List, add and remove cards.", list_cards)


@cards.command("add", cls=Command)
def add_card(
    *,
    token: Annotated[
        str | None,
        typer.Option(
            "--payment-method", metavar="TOKEN", help="A card that the processor knows, pm_…", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Add a card: prints the address of the payment processor's page, where its owner types it.

    No card's number passes through here, or is kept. On a terminal it waits until the card is there. Takes an admin
    key.

    Examples:
      luthier billing cards add
      luthier billing cards add --payment-method pm_card_visa
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        if token:
            setup = as_dict(connection.post("/api/billing/cards", {"payment_method": token}))
        else:
            setup = as_dict(connection.post("/api/billing/cards/setups", {"hosted": True}))
        path = f"/api/billing/cards/setups/{quote(str(setup.get('id')), safe='')}"
        setup = _wait_for_owner(output, connection, setup, path, "add the card at")
    if as_json:
        output.write_json(setup)
    elif (card := as_dict(setup.get("card"))) and card.get("id"):
        output.line(card["id"])
        output.note(f"{card['brand']} ending in {card['last4']} is added")
    elif setup["status"] in {"failed", "canceled"}:
        raise _explain(setup, "card_not_added", "the card was not added")


def _wait_for_owner(
    output: Output, connection: Connection, answer: dict[str, Any], path: str, what: str
) -> dict[str, Any]:
    """Name the page where a card's owner has to do something and, where a person watches, wait until they have."""
    if output.as_json or not answer.get("action_url"):
        return answer
    output.line(str(answer["action_url"]))
    output.note(f"{what} this address")
    if not output.is_live:
        return answer
    deadline = time.monotonic() + OWNER_MAX_S
    with output.waiting("Waiting for the card's owner; ^C stops the waiting only"):
        while answer["status"] in {"created", "open", "needs_action"} and time.monotonic() < deadline:
            time.sleep(POLL_S)
            answer = as_dict(connection.get(path))
    return answer


def _explain(answer: dict[str, Any], code: str, message: str) -> Failure:
    reason = answer.get("failure_message") or str(answer.get("status"))
    return Failure(code, f"{message}: {reason}", exit_code=Exit.FUNDS, hint="try again, or with another card")


@cards.command("default", cls=Command)
def set_default(card_id: CardId, *, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Charge payments to this card from now on. Takes an admin key.

    Examples:
      luthier billing cards default card-0b5e…
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        card = as_dict(connection.put(f"/api/billing/cards/{quote(card_id, safe='')}/default"))
    if as_json:
        output.write_json(card)
    else:
        output.note(f"{card['brand']} ending in {card['last4']} is the default now")


@cards.command("remove", cls=Command)
def remove_card(card_id: CardId, *, yes: Yes = False, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Remove a card; it is not charged any more. Takes an admin key.

    Examples:
      luthier billing cards remove card-0b5e… --yes
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        output.require_consent(f"Remove {card_id}?", yes=yes)
        card = as_dict(connection.delete(f"/api/billing/cards/{quote(card_id, safe='')}"))
    if as_json:
        output.write_json(card)
    else:
        output.note(f"removed {card['brand']} ending in {card['last4']}")


def pay(
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In whole cents, 20 or 20.50.", show_default=False)],
    *,
    card: Annotated[
        str | None, typer.Option("--card", metavar="CARD", help="Default: the default card.", show_default=False)
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Charge a card, and add the amount to the balance.

    The card is charged once, however often an answer is lost. Where its owner has to confirm, the page's address is
    printed. Takes an admin key.

    Examples:
      luthier billing pay 20
      luthier billing pay 100 --card card-0b5e… --yes
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    body = {"amount": amount, **({"card_id": card} if card else {})}
    with connect(base_url) as connection:
        if not yes:
            output.require_start(f"Charge {amount} to {card or 'the default card'}?")
        payment = as_dict(connection.post("/api/billing/payments", body, idempotency_key=uuid.uuid4().hex))
        path = f"/api/billing/payments/{quote(str(payment.get('id')), safe='')}"
        payment = _wait_for_owner(output, connection, payment, path, "confirm the payment at")
        balance = as_dict(connection.get("/api/billing/balance"))
    if as_json:
        output.write_json(payment)
        return
    _tell_payment(output, payment, balance)


def _tell_payment(output: Output, payment: dict[str, Any], balance: dict[str, Any]) -> None:
    from luthier.billing.money import format_money

    amount = format_money(payment["amount_nanos"], payment["currency"])
    if payment["status"] == "succeeded":
        output.line(str(payment["id"]))
        left = format_money(balance["available_nanos"], balance["currency"])
        output.note(f"paid {amount} by {payment['card']}; {left} is available now")
    elif payment["status"] == "created":
        output.line(str(payment["id"]))
        output.note("the payment processor has not answered yet; see luthier billing payments", style="yellow")
    elif payment["status"] in {"failed", "canceled"}:
        raise _explain(payment, "card_declined", f"{amount} was not paid")


def list_payments(*, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """List the newest payments, and what is to be done about them.

    Examples:
      luthier billing payments list
      luthier billing payments list --json | jq -r '.data[] | select(.status=="needs_action") | .action_url'
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get("/api/billing/payments", {"limit": PAYMENTS_LIMIT}))
    if as_json:
        output.write_json(answer)
        return
    from luthier.cli import money_views

    money_views.show_payments(output, answer)


payments = make_listing_group("List payments, and send them back.", list_payments)


@payments.command("refund", cls=Command)
def refund_payment(
    payment_id: Annotated[str, typer.Argument(metavar="PAYMENT", help="Id of the payment, pay-…", show_default=False)],
    amount: Annotated[
        str | None, typer.Argument(metavar="AMOUNT", help="Default: all that is left of it.", show_default=False)
    ] = None,
    *,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Stands in the statement.", show_default=False)
    ],
    yes: Yes = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Send a payment, or a part of it, back to its card: at most the cash that is available.

    Takes an admin key.

    Examples:
      luthier billing payments refund pay-0b5e… --reason "not needed"
      luthier billing payments refund pay-0b5e… 5 --reason "paid too much"
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    body = {"reason": reason, **({"amount": amount} if amount else {})}
    path = f"/api/billing/payments/{quote(payment_id, safe='')}/refunds"
    with connect(base_url) as connection:
        output.require_consent(f"Send {amount or 'what is left'} of {payment_id} back to its card?", yes=yes)
        refund = as_dict(connection.post(path, body, idempotency_key=uuid.uuid4().hex))
    if as_json:
        output.write_json(refund)
    else:
        from luthier.billing.money import format_money

        output.line(str(refund["id"]))
        done = "went back to the card" if refund["status"] == "succeeded" else "is on its way back to the card"
        output.note(f"{format_money(refund['amount_nanos'], refund['currency'])} {done}")


def auto_recharge(
    *,
    threshold: Annotated[
        str | None,
        typer.Option("--threshold", metavar="AMOUNT", help="Charge below this available balance.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="AMOUNT", help="Charge up to this available balance.", show_default=False),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Do not charge by itself any more.")] = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Show or set automatic recharging.

    Below a threshold the default card is charged up to a target. After three failures in a row it switches itself off, and says why. Setting it takes an admin key.

    Examples:
      luthier billing auto-recharge
      luthier billing auto-recharge --threshold 10 --target 50
      luthier billing auto-recharge --off
    """
    from luthier.cli.connection import connect

    if off and (threshold or target):
        raise Failure("usage", "--off stands alone", exit_code=Exit.USAGE, hint="luthier billing auto-recharge --help")
    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        if off:
            answer = as_dict(connection.put("/api/billing/auto-recharge", {"enabled": False}))
        elif threshold or target:
            answer = as_dict(connection.put("/api/billing/auto-recharge", {"threshold": threshold, "target": target}))
        else:
            answer = as_dict(connection.get("/api/billing/auto-recharge"))
    if as_json:
        output.write_json(answer)
        return
    from luthier.cli import money_views

    money_views.show_recharge(output, answer)
