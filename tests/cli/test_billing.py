"""``luthier billing`` against a real service and on a real home; cards and payments through a Stripe on loopback."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.accounts import service as accounts
from luthier.clock import SystemClock
from luthier.db import Database
from server import running
from stripe_simulator import Simulator

MODEL = "luthier/tiny"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Settings of a service whose workers are ``stub_worker.py``."""
    stub = tmp_path_factory.mktemp("stub") / "python"
    worker = Path(__file__).with_name("stub_worker.py")
    stub.write_text(
        f'#!/bin/sh\n[ "$2" = luthier.training ] && exec {sys.executable} {worker} "$3"\nexec {sys.executable} "$@"\n'
    )
    stub.chmod(0o755)
    return {"LUTHIER_WORKER_PYTHON": str(stub), "LUTHIER_DISK_RESERVE_BYTES": "0"}


def configure(cli, server):
    """The command line, configured for a server by its environment."""
    return replace(cli, environment={"LUTHIER_BASE_URL": server.base_url, "LUTHIER_API_KEY": server.api_key})


@pytest.fixture(scope="module")
def service(environment, tmp_path_factory):
    """A service with manual payments, which has granted its $100."""
    with running(tmp_path_factory.mktemp("manual") / "home", environment=environment) as server:
        yield server


@pytest.fixture
def luthier(cli, service):
    return configure(cli, service)


@pytest.fixture
def operator(cli, service):
    """The command line at the server's home, without a key."""
    return replace(cli, home=service.home)


def write_rows(folder, name="train.jsonl", rows=30):
    lines = [{"messages": [{"role": "user", "content": f"{row}?"}, {"role": "assistant", "content": "yes " * row}]}
             for row in range(1, rows + 1)]  # fmt: skip
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


@pytest.fixture(scope="module")
def job(service, make_cli, tmp_path_factory):
    """A job that completed, as ``ft get`` shows it."""
    folder = tmp_path_factory.mktemp("job")
    cli = configure(make_cli(folder, folder), service)
    made = cli("ft", "create", write_rows(folder), "-m", MODEL, "--n-epochs", 20, "--json").json
    assert cli("watch", made["id"]).code == 0
    return cli("ft", "get", made["id"], "--json").json


def format_price(job):
    return f"${job['total_price'] / 1e9:.9f}".rstrip("0")


def test_balance_when_a_job_was_charged_then_it_is_spent_and_the_rest_available(luthier, job):
    balance = luthier("billing", "balance", "--json").json
    assert balance["spent_nanos"] >= job["total_price"] > 0
    shown = luthier("billing", "balance").out
    for word in ("available", "held", "spent", "may be spent", "this month", balance["organization_id"]):
        assert word in shown


def test_statement_when_shown_then_each_entry_is_a_sentence_and_the_csv_has_them_too(luthier, job):
    shown = luthier("billing", "statement").out
    price = format_price(job)
    for text in (
        "opening balance",
        "Granted $100.00 of credit at the first start",
        f"Held {price} for job {job['id']}",
        f"Charged {price} for job {job['id']}",
        f"-{price}",
        "closing balance",
    ):
        assert text in shown
    rows = list(csv.DictReader(io.StringIO(luthier("billing", "statement", "--csv").out)))
    data = luthier("billing", "statement", "--json").json["data"]
    assert [row["what"] for row in rows] == [line["text"] for line in data]
    assert luthier("billing", "statement", "--month", "2001-01").out.count("balance") == 2
    wrong = luthier("billing", "statement", "--month", "soon", "--json")
    assert (wrong.code, wrong.error["code"]) == (4, "invalid_month")


def test_usage_when_asked_by_each_then_the_job_is_in_all(luthier, job):
    for by, text in (("project", "default"), ("key", "admin"), ("model", MODEL), ("job", job["id"])):
        assert text in luthier("billing", "usage", "--by", by).out
        assert luthier("billing", "usage", "--by", by, "--json").json["by"] == by
    (own,) = [
        one for one in luthier("billing", "usage", "--by", "job", "--json").json["data"] if one["id"] == job["id"]
    ]
    assert own["tokens"] == job["token_count"]
    assert luthier("billing", "usage", "--by", "colour").code == 2


def test_job_when_shown_then_its_money_is_told_in_the_ledgers_sentences(luthier, job):
    price = format_price(job)
    for arguments in (("billing", "job"), ("ft", "get")):
        shown = luthier(*arguments, job["id"]).out
        assert f"Quoted {price}: {job['token_count']:,} tokens at $0.48 a million (prices of 2025)" in shown
        assert f"Held {price} for job" in shown
        assert f"Charged {price} for job" in shown
    assert luthier("billing", "job", job["id"], "--json").json["charged_nanos"] == job["total_price"]
    assert luthier("billing", "job", "ft-none", "--json").error["code"] == "job_not_found"


def test_limits_when_set_below_what_is_used_then_the_bar_is_full_and_create_is_refused(luthier, job):
    key = luthier("keys", "create", "--name", "narrow", "--json").json
    assert luthier("billing", "limits", "set", "0.001", "--key-id", key["id"]).code == 0
    assert luthier("billing", "limits", "set", "250", "--project", "default").code == 0
    assert luthier("billing", "limits", "set", "300").code == 0
    shown = luthier("billing", "limits").out
    assert re.search(r"organization +Default +\$300\.00", shown)
    assert re.search(r"key +narrow +\$0\.001 +\$0\.00 +\$0\.001 +░+ +0 %", shown)
    narrow = replace(luthier, environment={**luthier.environment, "LUTHIER_API_KEY": key["secret"]})
    name = write_rows(narrow.cwd, rows=31)
    refused = narrow("ft", "create", name, "-m", MODEL, "--n-epochs", 20, "--json")
    assert (refused.code, json.loads(refused.err)["error"]["code"]) == (5, "spending_limit_reached")
    assert narrow("billing", "limits", "set", "9", "--json").error["code"] == "admin_only"
    for scope in (("--key-id", key["id"]), ("--project", "default"), ()):
        assert luthier("billing", "limits", "remove", *scope).code == 0
    assert luthier("billing", "limits", "list").out == ""
    assert "no limits" in luthier("billing", "limits").err
    assert luthier("billing", "limits", "--json").json["data"] == []
    assert luthier("billing", "limits", "set", "1", "--project", "a", "--key-id", "b").code == 2
    assert luthier("billing", "limits", "set", "many", "--json").error["code"] == "invalid_amount"


def test_limits_when_half_is_used_then_the_alert_is_shown(luthier, job):
    key = luthier("keys", "create", "--name", "half", "--json").json
    mine = replace(luthier, environment={**luthier.environment, "LUTHIER_API_KEY": key["secret"]})
    name = write_rows(mine.cwd, rows=32)
    price = mine("ft", "estimate", name, "-m", MODEL, "--n-epochs", 20, "--json").json["estimated_total_price"]
    luthier("billing", "limits", "set", f"{price * 2:.9f}", "--key-id", key["id"])
    assert mine("ft", "create", name, "-m", MODEL, "--n-epochs", 20).code == 0
    shown = luthier("billing", "limits").out
    assert re.search(r"█{10}░{10} +50 %", shown)
    assert re.search(r"50 % of \$[\d.]+ reached: key half", shown)
    assert luthier("billing", "limits", "--json").json["alerts"][0]["percent"] == 50
    luthier("billing", "limits", "remove", "--key-id", key["id"])


def test_grant_when_repeated_with_its_key_then_it_is_given_once(operator):
    before = operator("billing", "organizations", "--json").json["data"][0]["available_nanos"]
    for _ in range(3):
        granted = operator(
            "billing", "grant", "default", "20.50", "--reason", " ticket\n17 ", "--idempotency-key", "t-17"
        )
        assert (granted.code, granted.out) == (0, "Granted $20.50 of credit: ticket 17\n")
    answer = operator("billing", "adjust", "-0.5", "--reason", "a slip", "--json").json
    assert (answer["kind"], answer["text"]) == ("adjust", "Corrected down by $0.50: a slip")
    assert answer["available_nanos"] == before + 20_000_000_000
    again = operator("billing", "grant", "21", "--reason", "x", "--idempotency-key", "t-17", "--json")
    assert (again.code, again.error["code"]) == (4, "key_used_before")


@pytest.mark.parametrize("amount", ["-1", "0", "NaN", "0.0000000001", "9223372037", "ten"])
def test_grant_when_the_amount_is_none_then_nothing_moves(operator, amount):
    before = operator("billing", "organizations").out
    refused = operator("billing", "grant", "--reason", "x", "--json", "--", amount)
    assert (refused.code, refused.error["code"]) == (4, "invalid_amount")
    assert operator("billing", "organizations").out == before


def test_grant_when_the_command_line_is_wrong_then_it_says_how(operator, cli):
    assert operator("billing", "grant", "5").code == 2
    assert operator("billing", "grant", "a", "b", "5", "--reason", "x").code == 2
    assert operator("billing", "grant", "5", "--reason", " ").code == 2
    unknown = operator("billing", "grant", "nobody", "5", "--reason", "x", "--json")
    assert (unknown.code, unknown.error["code"]) == (4, "organization_not_found")
    nowhere = cli("billing", "grant", "5", "--reason", "x", "--json")
    assert (nowhere.code, nowhere.error["code"]) == (4, "no_database")
    assert not (cli.home / "luthier.db").exists()


def test_refund_when_asked_twice_then_the_second_says_that_nothing_is_left(operator, luthier, job):
    part = operator("billing", "refund", job["id"], "0.000001", "--reason", "a little")
    assert part.out == f"Refunded $0.000001 for job {job['id']}: a little\n"
    assert (
        operator("billing", "refund", job["id"], "5", "--reason", "x", "--json").error["code"]
        == "refund_exceeds_charge"
    )
    for _ in range(2):
        rest = operator(
            "billing", "refund", job["id"], "--reason", "our fault", "--idempotency-key", "once", "--json"
        ).json
        assert rest["kind"] == "refund"
    left = operator("billing", "refund", job["id"], "--reason", "again", "--json")
    assert (left.code, left.error["code"]) == (4, "nothing_to_refund")
    money = luthier("billing", "job", job["id"], "--json").json
    assert (money["cost"], money["refunded_nanos"]) == ("0.00", job["total_price"])
    events = [one for one in luthier("list-events", job["id"], "--json").json["data"] if one["type"] == "refund"]
    assert [one["data"]["refund_nanos"] for one in events] == [1000, job["total_price"] - 1000]
    assert "our fault" in events[1]["message"]
    assert operator("billing", "refund", "ft-none", "--reason", "x", "--json").error["code"] == "job_not_found"


def test_credit_limit_when_set_then_the_balance_shows_it(operator, luthier):
    assert operator("billing", "credit-limit", "30").code == 0
    assert re.search(r"credit limit +\$30\.00", luthier("billing", "balance").out)
    assert operator("billing", "credit-limit", "0", "--json").json["limit_nanos"] == 0
    assert "credit limit" not in luthier("billing", "balance").out


def test_verify_when_the_books_are_sound_then_one_line_and_0(operator, job):
    sound = operator("billing", "verify")
    assert sound.code == 0
    assert re.fullmatch(r"the books balance: \d+ entries of 1 organization, each as it was written\n", sound.out)
    answer = operator("billing", "verify", "--json").json
    assert answer["is_sound"] is True
    assert len(answer["heads"]) == 1


@pytest.fixture
def altered_home(cli, environment, tmp_path):
    """A home in whose ledger somebody has changed the second entry of three."""
    home = tmp_path / "altered"
    with running(home, environment=environment):
        pass
    operator = replace(cli, home=home)
    for amount in ("1", "2"):
        assert operator("billing", "grant", amount, "--reason", "x").code == 0
    with sqlite3.connect(home / "luthier.db") as connection:
        connection.execute("DROP TRIGGER ledger_entries_no_update")
        connection.execute("UPDATE ledger_entries SET note = 'Granted more' WHERE seq = 2")
    connection.close()
    return home


def test_verify_when_an_entry_was_altered_then_it_is_named_and_1(cli, altered_home):
    found = cli("billing", "verify", "--home", altered_home)
    assert found.code == 1
    assert re.fullmatch(r"org-[0-9a-f-]+: entry 2 was altered: its hash does not fit\n", found.out)
    answer = json.loads(cli("billing", "verify", "--home", altered_home, "--json").out)
    assert (answer["is_sound"], answer["problems"][0]["seq"]) == (False, 2)


def test_organization_when_there_are_two_then_one_must_be_named(cli, environment, tmp_path):
    home = tmp_path / "two"
    with running(home, environment=environment):
        pass
    database, now = Database(f"sqlite:///{home / 'luthier.db'}"), SystemClock().now()
    with database.transaction() as tx:
        other = accounts.create_organization(tx, name="Other", now=now)
        accounts.create_project(tx, organization_id=other, name="Shop", slug="shop", now=now)
    database.dispose()
    operator = replace(cli, home=home)
    refused = operator("billing", "grant", "5", "--reason", "x", "--json")
    assert refused.error["code"] == "organization_needed"
    for name in ("shop", other):
        assert operator("billing", "grant", name, "5", "--reason", "x").code == 0
    listed = operator("billing", "organizations", "--json").json["data"]
    assert [(one["name"], one["projects"], one["available"]) for one in listed] == [
        ("Default", ["default"], "100.00"), ("Other", ["shop"], "10.00"),
    ]  # fmt: skip
    assert re.search(r"Other +shop +\$10\.00", operator("billing", "organizations").out)


@pytest.fixture(scope="module")
def stripe():
    with Simulator().running() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def paying_service(environment, stripe, tmp_path_factory):
    """A service that takes payments by card, without a cent."""
    settings = {
        **environment,
        "LUTHIER_PAYMENTS_PROCESSOR": "stripe",
        "LUTHIER_STRIPE_SECRET_KEY": stripe.secret_key,
        "LUTHIER_STRIPE_WEBHOOK_SECRET": stripe.webhook_secret,
        "LUTHIER_STRIPE_API_BASE": stripe.url,
    }
    with running(tmp_path_factory.mktemp("stripe") / "home", environment=settings) as server:
        yield server


def test_cards_and_payments_when_one_begins_with_nothing_then_the_hints_lead_to_a_job(cli, paying_service, stripe):
    luthier = configure(cli, paying_service)
    name = write_rows(luthier.cwd)
    poor = luthier("files", "upload", name, "--json")
    assert (poor.code, poor.error["code"]) == (5, "insufficient_balance")
    assert "$5.00 is missing" in luthier("billing", "balance").err
    assert "luthier billing cards add" in poor.error["hint"]

    assert "no cards" in luthier("billing", "cards").err
    page = luthier("billing", "cards", "add")
    assert page.out.startswith("https://")
    added = luthier("billing", "cards", "add", "--payment-method", "pm_card_visa")
    assert added.out.startswith("card-")
    declined = luthier("billing", "cards", "add", "--payment-method", "pm_card_chargeDeclined", "--json")
    assert (declined.code, declined.error["code"]) == (5, "card_declined")
    second = luthier("billing", "cards", "add", "--payment-method", "pm_card_mastercard").out.strip()
    assert luthier("billing", "cards", "default", second).code == 0
    assert re.search(r"mastercard ending in 4444 +12/\d{4} +default", luthier("billing", "cards").out)

    paid = luthier("billing", "pay", "20")
    assert paid.out.startswith("pay-")
    assert "paid $20.00 by mastercard ending in 4444; $20.00 is available now" in paid.err
    assert [amount for _customer, amount in stripe.charges] == [2000]
    assert luthier("billing", "pay", "0.001", "--json").error["code"] == "invalid_amount"
    payment = paid.out.strip()
    refunded = luthier("billing", "payments", "refund", payment, "5", "--reason", "too much")
    assert refunded.out.startswith("payrefund-")
    assert refunded.err == "$5.00 went back to the card\n"
    assert re.search(rf"{payment} .*\$20\.00 +succeeded +mastercard ending in 4444; \$5\.00 refunded",
                     luthier("billing", "payments").out)  # fmt: skip
    assert luthier("files", "upload", name).code == 0

    assert luthier("billing", "auto-recharge").out.startswith("off")
    shown = luthier("billing", "auto-recharge", "--threshold", "10", "--target", "50").out
    assert shown == "on: below $10.00 the default card is charged up to $50.00\n"
    assert luthier("billing", "auto-recharge", "--off", "--target", "5").code == 2
    assert luthier("billing", "auto-recharge", "--off", "--json").json["enabled"] is False
    assert luthier("billing", "cards", "remove", second, "--yes").code == 0
    assert [card["last4"] for card in luthier("billing", "cards", "--json").json["data"]] == ["4242"]


def test_secrets_when_the_service_takes_payments_then_its_log_has_none(paying_service, stripe):
    log = paying_service.read_log()
    assert stripe.secret_key not in log
    assert stripe.webhook_secret not in log


def test_cards_when_payments_are_manual_then_the_way_out_is_told(luthier):
    refused = luthier("billing", "pay", "20", "--json")
    assert (refused.code, refused.error["code"]) == (4, "payments_are_manual")
    assert "luthier billing grant" in refused.error["hint"]
