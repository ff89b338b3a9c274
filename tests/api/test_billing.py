"""What an organization has, spends and may spend, over HTTP."""

from __future__ import annotations

import csv
import io

import pytest

import factories
from luthier.accounts import service as accounts
from luthier.billing import ledger
from luthier.billing.ledger import Cause
from luthier.settings import Settings

DOLLAR = 1_000_000_000
DAY_S = 86_400


@pytest.fixture
def principal(service):
    """Who the admin key is."""
    with service.database.read() as tx:
        return accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=service.clock.now())


@pytest.fixture
def make_job(service, principal):
    """Make a job of 100,000 tokens in a state; its price is $0.048."""

    def make(state="completed", **options):
        now = service.clock.now()
        with service.database.transaction() as tx:
            inputs = factories.make_inputs(tx, principal, now=now, tokens=100_000) if state != "pending" else None
            return factories.make_job(tx, principal, now=now, state=state, inputs=inputs, **options)

    return make


def get(client, path, **params):
    response = client.get(f"/api/billing/{path}", params=params)
    assert response.status_code == 200, response.text
    return response.json()


def get_error(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["hint"]
    return error


def move(service, principal, operation, nanos, note="Said", cause=Cause("operator", "anna")):  # noqa: B008  a value
    with service.database.transaction() as tx:
        operation(tx, principal.organization_id, nanos, key=note, cause=cause, note=note, now=service.clock.now())


def test_balance_when_a_job_waits_and_one_is_done_then_each_account_is_told_exactly(client, make_job):
    done, waiting = make_job(), make_job("queued")
    balance = get(client, "balance")
    assert done.price_nanos == waiting.price_nanos == 48_000_000
    assert (balance["available_nanos"], balance["available"]) == (100 * DOLLAR - 96_000_000, "99.904")
    assert (balance["held"], balance["spent"]) == ("0.048", "0.048")
    assert (balance["credit"], balance["cash"], balance["minimum"]) == ("99.904", "0.00", "5.00")
    assert (balance["currency"], balance["processor"], balance["is_enforced"]) == ("USD", "manual", True)
    assert balance["spendable"] == "99.904"


def test_statement_when_asked_then_balances_totals_and_sentences_agree(client, make_job, service, principal):
    job = make_job("cancelled", step=5)
    move(service, principal, ledger.adjust, -DOLLAR, "Took one back")
    statement = get(client, "statement")
    assert (statement["month"], statement["currency"], statement["entries"]) == ("2026-01", "USD", 4)
    assert (statement["opening"]["available"], statement["closing"]["available"]) == ("0.00", "98.976")
    totals = statement["totals"]
    assert (totals["granted"], totals["held"], totals["charged"], totals["released"], totals["adjusted"]) == (
        "100.00", "0.048", "0.024", "0.024", "-1.00",
    )  # fmt: skip
    assert [line["kind"] for line in statement["data"]] == ["grant", "hold", "capture", "adjust"]
    assert statement["data"][2]["text"] == f"Charged $0.024 for job {job.id}; released the other $0.024"
    assert (statement["data"][2]["cause_kind"], statement["data"][2]["cause_id"]) == ("job", job.id)
    assert [line["available"] for line in statement["data"]] == ["100.00", "99.952", "99.976", "98.976"]
    assert [line["held"] for line in statement["data"]] == ["0.00", "0.048", "0.00", "0.00"]


def test_statement_when_read_page_by_page_then_it_is_the_same(client, make_job):
    for _ in range(3):
        make_job()
    whole = get(client, "statement")["data"]
    pages, after = [], 0
    while after is not None:
        page = get(client, "statement", limit=2, after=after)
        pages += page["data"]
        after = page["next_after"]
    assert pages == whole
    assert len(whole) == 7


def test_statement_when_as_csv_then_it_sums_up_and_no_cell_is_a_formula(client, make_job, service, principal):
    make_job()
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", 'say "hi", twice'):
        move(service, principal, ledger.adjust, -1, text)
    response = client.get("/api/billing/statement", params={"format": "csv", "month": "2026-01"})
    assert response.headers["content-type"].startswith("text/csv")
    assert 'filename="luthier-2026-01.csv"' in response.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(response.text, newline="")))
    assert len(rows) == 10
    assert not [row["what"] for row in rows if row["what"][0] in "=+-@\t\r\n"]
    assert "'=1+1" in [row["what"] for row in rows]
    assert 'say "hi", twice' in [row["what"] for row in rows]
    balance = get(client, "balance")
    for account in ("cash", "credit", "held"):
        assert f"{sum(float(row[account]) for row in rows):.6f}" == f"{float(balance[account]):.6f}"
    assert rows[-1]["available_after"] == balance["available"]
    assert rows[-1]["cash"] == "-0.000000001"


def test_statement_when_the_month_is_wrong_then_the_error_shows_how_to_write_it(client):
    error = get_error(client.get("/api/billing/statement", params={"month": "January"}), 400)
    assert (error["code"], error["param"]) == ("invalid_month", "month")
    assert "2026-01" in error["hint"]
    assert get(client, "statement", month="2031-07")["closing"]["available"] == "100.00"


def test_usage_when_asked_by_each_then_jobs_tokens_and_cost_are_told_under_names(client, make_job, principal):
    first, second = make_job(), make_job("cancelled", step=5)
    make_job("user_error")
    usage = {by: get(client, "usage", by=by) for by in ("project", "key", "model", "job")}
    assert {(one["jobs"], one["tokens"], one["cost"]) for one in usage.values()} == {(2, 150_000, "0.072")}
    assert [one["name"] for one in usage["project"]["data"]] == [principal.project_slug]
    assert [one["name"] for one in usage["key"]["data"]] == [principal.api_key_name]
    assert [one["name"] for one in usage["model"]["data"]] == ["luthier/tiny"]
    assert {one["id"]: one["cost"] for one in usage["job"]["data"]} == {first.id: "0.048", second.id: "0.024"}
    assert get(client, "usage", month="2025-12")["data"] == []


def test_limits_when_set_and_removed_then_they_are_listed_with_what_is_used(client, make_job, principal):
    make_job(), make_job("queued")
    path = f"/api/billing/limits/project/{principal.project_slug}"
    limit = client.put(path, json={"monthly": "0.192"}).json()
    assert (limit["scope"], limit["scope_id"], limit["name"]) == ("project", principal.project_id, "default")
    assert (limit["monthly"], limit["used"], limit["held"], limit["left"]) == ("0.192", "0.096", "0.048", "0.096")
    client.put(f"/api/billing/limits/organization/{principal.organization_id}", json={"monthly": 50})
    client.put(f"/api/billing/limits/key/{principal.api_key_id}", json={"monthly": "0"})
    assert [(one["scope"], one["monthly"]) for one in get(client, "limits")["data"]] == [
        ("organization", "50.00"), ("project", "0.192"), ("key", "0.00"),
    ]  # fmt: skip
    assert get(client, "balance")["spendable"] == "0.00"
    assert client.delete(f"/api/billing/limits/key/{principal.api_key_id}").json()["deleted"] is True
    assert client.delete(f"/api/billing/limits/key/{principal.api_key_id}").status_code == 200
    assert get(client, "balance")["spendable"] == "0.096"


def test_alerts_when_half_of_a_limit_is_used_then_there_is_one(client, make_job, principal):
    client.put(f"/api/billing/limits/project/{principal.project_id}", json={"monthly": "0.08"})
    make_job("queued")
    (alert,) = get(client, "alerts")["data"]
    assert (alert["percent"], alert["limit"], alert["used"], alert["name"]) == (50, "0.08", "0.048", "default")


@pytest.mark.parametrize("amount", ["-1", "NaN", "x", "0.0000000001", "9223372037", "1e400", "", "Infinity"])
def test_limit_when_the_amount_is_none_then_it_is_refused_and_nothing_is_set(client, principal, amount):
    path = f"/api/billing/limits/project/{principal.project_id}"
    error = get_error(client.put(path, json={"monthly": amount}), 400)
    assert (error["code"], error["param"]) == ("invalid_amount", "monthly")
    for other in (True, None, [1], {}):
        assert client.put(path, json={"monthly": other}).status_code == 422
    assert get(client, "limits")["data"] == []


def test_limit_when_the_scope_is_anothers_then_it_is_not_found(client, service, other_project_key, principal):
    with service.connect(other_project_key) as other:
        me = other.get("/v3/whoami").json()
        for scope, own, foreign in (
            ("organization", me["organization_id"], principal.organization_id),
            ("project", me["project_slug"], principal.project_slug),
            ("project", me["project_id"], principal.project_id),
            ("key", me["api_key_id"], principal.api_key_id),
        ):
            assert other.put(f"/api/billing/limits/{scope}/{own}", json={"monthly": "1"}).status_code == 200
            get_error(other.put(f"/api/billing/limits/{scope}/{foreign}", json={"monthly": "1"}), 404)
            get_error(other.delete(f"/api/billing/limits/{scope}/{foreign}"), 404)
        assert len(get(other, "limits")["data"]) == 3
    assert get(client, "limits")["data"] == []
    assert client.put("/api/billing/limits/planet/earth", json={"monthly": "1"}).status_code == 422


def test_routes_when_the_key_is_no_admins_then_it_may_look_and_not_change(client, service, principal):
    with service.connect(service.make_key()) as user:
        for path in (
            "balance",
            "statement",
            "usage",
            "limits",
            "alerts",
            "cards",
            "payments",
            "auto-recharge",
            "disputes",
        ):
            assert user.get(f"/api/billing/{path}").status_code == 200, path
        for method, path, body in (
            ("PUT", f"limits/project/{principal.project_id}", {"monthly": "1"}),
            ("DELETE", f"limits/project/{principal.project_id}", None),
            ("POST", "cards", {"payment_method": "pm_card_visa"}),
            ("POST", "cards/setups", {}),
            ("DELETE", "cards/card-1", None),
            ("PUT", "cards/card-1/default", None),
            ("POST", "payments", {"amount": "20"}),
            ("POST", "payments/pay-1/refunds", {"reason": "x"}),
            ("PUT", "auto-recharge", {"enabled": False}),
        ):
            error = get_error(user.request(method, f"/api/billing/{path}", json=body), 403)
            assert error["code"] == "admin_only"
    with service.connect("lk-wrong") as stranger:
        for path in ("balance", "statement", "usage", "limits", "alerts", "jobs/ft-1", "cards", "payments"):
            assert stranger.get(f"/api/billing/{path}").status_code == 403


def test_job_money_when_a_job_is_cancelled_then_quote_hold_and_capture_are_sentences(client, make_job):
    job = make_job("cancelled", step=5)
    money = get(client, f"jobs/{job.id}")
    bought = "100,000 tokens of luthier/tiny (sft, Lora) at $0.48 a million (prices of 2025)"
    assert money["sentences"] == [
        "Quoted $0.048: 100,000 tokens at $0.48 a million (prices of 2025)",
        f"Held $0.048 for job {job.id}: {bought}; project {money['project_id']}, key {money['api_key_id']}",
        f"Charged $0.024 for job {job.id}; released the other $0.024",
    ]
    assert (money["held"], money["charged"], money["released"], money["refunded"], money["cost"]) == (
        "0.00", "0.024", "0.024", "0.00", "0.024",
    )  # fmt: skip
    assert (money["quote"]["billed_tokens"], money["quote"]["rate_a_million"]) == (100_000, "0.48")
    assert [entry["kind"] for entry in money["data"]] == ["hold", "capture"]


def test_job_money_when_not_priced_unknown_or_anothers_then_it_says_so(client, make_job, service, other_project_key):
    pending = make_job("pending")
    money = get(client, f"jobs/{pending.id}")
    assert (money["quote"], money["data"], money["cost"]) == (None, [], "0.00")
    assert money["sentences"] == ["Not priced yet", "Nothing is set aside for this job yet"]
    assert get_error(client.get("/api/billing/jobs/ft-0"), 404)["code"] == "job_not_found"
    priced = make_job("queued")
    with service.connect(other_project_key) as other:
        for job in (pending, priced):
            assert get_error(other.get(f"/api/billing/jobs/{job.id}"), 404)["code"] == "job_not_found"


def test_everything_when_another_organization_asks_then_it_sees_only_its_own(make_job, service, other_project_key):
    make_job()
    with service.connect(other_project_key) as other:
        assert get(other, "balance")["spent_nanos"] == 0
        assert [line["kind"] for line in get(other, "statement")["data"]] == ["grant"]
        assert get(other, "usage", by="job")["data"] == []
        assert other.get("/v1/billing/usage").json()["data"] == []


def test_v1_usage_when_the_day_is_over_then_each_charge_names_job_tokens_and_rate(client, make_job, service, principal):
    job = make_job("cancelled", step=5)
    assert client.get("/v1/billing/usage").json()["data"] == []
    service.clock.advance(DAY_S)
    with service.database.transaction() as tx:
        ledger.refund(tx, job.id, 4_000_000, key="r1", reason="late", now=service.clock.now())
    service.clock.advance(DAY_S)
    report = client.get("/v1/billing/usage", params={"organization_id": principal.organization_id}).json()
    assert (report["object"], report["billing_period"], report["currency"]) == ("list", "2026-01", "USD")
    assert (report["earliest_window_start"], report["latest_window_end"]) == (
        "2026-01-01T00:00:00.000000Z", "2026-01-03T00:00:00.000000Z",
    )  # fmt: skip
    charged, refunded = report["data"]
    assert (charged["date"], charged["end_time"]) == ("2026-01-01", "2026-01-02T00:00:00.000000Z")
    (item,) = charged["line_items"]
    assert item["attributes"]["job_id"] == job.id
    assert (item["quantity"], item["unit_price"], item["cost"]) == ("50000", "0.00000048", "0.024")
    assert item["applied_credit"] == {"type": "CREDIT"}
    assert [one["cost"] for one in refunded["line_items"]] == ["-0.004"]


def test_v1_usage_when_the_organization_is_another_then_403_and_the_way_out(client):
    error = get_error(client.get("/v1/billing/usage", params={"organization_id": "org-other"}), 403)
    assert error["code"] == "not_your_organization"
    assert "leave organization_id out" in error["hint"]


class TestMeteredOnly:
    """A server that refuses nothing."""

    @pytest.fixture
    def settings(self, home):
        return Settings(home=home, disk_reserve_bytes=0, billing_enabled=False, billing_opening_grant="0")

    def test_balance_when_nothing_is_refused_then_it_says_so(self, client):
        balance = get(client, "balance")
        assert (balance["is_enforced"], balance["available"]) == (False, "0.00")
