"""Too little money, told by the official clients: never to be mistaken for a wrong key. And what was spent."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

import factories
import server as servers
from luthier import home as home_dir
from luthier.accounts import service as accounts
from luthier.billing import ledger
from luthier.db import Database
from luthier.settings import Settings

pytestmark = [pytest.mark.training, pytest.mark.clients]

WAYS_OUT = ("luthier billing grant", "luthier billing credit-limit", "luthier billing balance")


def operate(server, *arguments):
    """Run a command of the operator's."""
    environment = {**servers.clean_environment(), "LUTHIER_HOME": str(server.home)}
    subprocess.run([sys.executable, "-m", "luthier.cli", "billing", *arguments], env=environment, check=True)


LAST_MONTH = (datetime.now(UTC).replace(day=1) - timedelta(days=1)).replace(day=1, hour=12, minute=0)


@pytest.fixture(scope="module")
def old_customer_key(poor_server):
    """A key of an organization that was charged for three jobs last month; made in the server's database."""
    settings = Settings(home=poor_server.home)
    database = Database(settings.resolved_database_url)
    with database.transaction() as tx:
        organization = accounts.create_organization(tx, name="Old", now=LAST_MONTH)
        project = accounts.create_project(tx, organization_id=organization, name="Old", slug="old", now=LAST_MONTH)
        factories.give(tx, organization, 10**9, now=LAST_MONTH)
        for day in range(3):
            now, job_id = LAST_MONTH + timedelta(days=day), f"ft-past-{day + 1}"
            purchase = factories.make_purchase(
                organization, 480_000, job_id=job_id, billed_tokens=1000, rate_nanos=480, project_id=project
            )
            ledger.hold(tx, purchase, now=now)
            ledger.resolve(tx, job_id, 480_000, now=now)
        _, secret = accounts.create_key(
            tx, project_id=project, name="old", is_admin=False, expires_at=None,
            master_key=home_dir.prepare(settings), now=LAST_MONTH,
        )  # fmt: skip
    database.dispose()
    return secret


@pytest.fixture(scope="module")
def poor_server(tmp_path_factory):
    """A server whose organization has a dollar, and a file from better days."""
    with servers.running(tmp_path_factory.mktemp("poor") / "home") as server:
        yield server


@pytest.fixture(scope="module")
def newer(poor_server, connect_client):
    return connect_client("together==3.1.1", poor_server, base_url=poor_server.base_url)


@pytest.fixture(scope="module")
def older(poor_server, connect_client):
    return connect_client("together==1.5.35", poor_server, base_url=f"{poor_server.base_url}/v1")


def write_rows(path, count):
    """Write a data set that no other test has."""
    path.write_text("".join(json.dumps({"text": f"{path.name} {number}"}) + "\n" for number in range(count)))
    return path


@pytest.fixture(scope="module")
def file_id(poor_server, newer):
    """A file that was uploaded before the money went."""
    path = write_rows(newer.folder / "before.jsonl", 24)
    uploaded = newer.script("answer = client.files.upload(file=sys.argv[1], purpose='fine-tune').id", str(path))
    operate(poor_server, "adjust", "-99", "--reason", "the better days are over")
    return uploaded


def try_all(client, file_id, *, error, status):
    """Return what an upload and a create are told, as (kind, status, text)."""
    path = write_rows(client.folder / "new.jsonl", 30)
    return client.script(
        f"""
        import together
        calls = (
            lambda: client.files.upload(file=sys.argv[1], purpose="fine-tune"),
            lambda: client.fine_tuning.create(training_file=sys.argv[2], model="luthier/tiny", lora=True),
        )
        answer = []
        for call in calls:
            try:
                call()
                answer.append(["nothing", 200, ""])
            except {error} as error:
                answer.append([type(error).__name__, error.{status}, str(error)])
        """,
        str(path),
        file_id,
    )


@pytest.mark.parametrize(
    ("name", "error", "status"),
    [("newer", "together.APIStatusError", "status_code"), ("older", "together.error.TogetherException", "http_status")],
)
def test_upload_and_create_when_there_is_too_little_then_402_with_numbers_and_ways_out_and_never_a_wrong_keys_words(
    request, name, error, status, file_id
):
    client = request.getfixturevalue(name)
    poor = try_all(client, file_id, error=error, status=status)
    strange = try_all(client.with_key("lk-wrong"), file_id, error=error, status=status)
    for kind, code, text in poor:
        assert code == 402, (kind, text)
        assert "the available balance is $1.00" in text
        assert "$4.00 is missing" in text
        for words in WAYS_OUT:
            assert words in text
        assert "API key" not in text
    for kind, code, text in strange:
        assert code == 403, (kind, text)
        assert "does not know the API key" in text
        assert "balance" not in text


def test_command_line_when_there_is_too_little_then_it_says_what_is_missing(newer, file_id):
    path = write_rows(newer.folder / "another.jsonl", 31)
    for arguments in (
        ("files", "upload", str(path)),
        ("ft", "create", "-t", file_id, "-M", "luthier/tiny", "-y"),
    ):
        done = newer.run("tg", *arguments, "--non-interactive")
        assert done.returncode != 0
        shown = " ".join((done.stdout + done.stderr).split())
        assert "$4.00 is missing" in shown, shown


def test_estimate_when_there_is_too_little_then_it_may_not_proceed(newer, file_id):
    script = """
    estimate = client.fine_tuning.estimate_price(training_file=sys.argv[1], model="luthier/tiny")
    answer = [estimate.allowed_to_proceed, estimate.user_limit]
    """
    assert newer.script(script, file_id) == [False, 1.0]


def test_costs_when_listed_then_each_window_names_jobs_tokens_and_rates(newer, old_customer_key):
    client = newer.with_key(old_customer_key)
    report = client.script(
        """
        page = client.organization.usage.costs.list(month=sys.argv[1], granularity="day", limit=1)
        answer = [window.to_dict() for window in page]
        """,
        LAST_MONTH.strftime("%Y-%m"),
    )
    assert [window["date"] for window in report] == [f"{LAST_MONTH:%Y-%m}-0{day}" for day in (1, 2, 3)]
    (item,) = report[0]["line_items"]
    assert item["attributes"]["job_id"] == "ft-past-1"
    assert (item["quantity"], item["unit_price"], item["cost"]) == ("1000", "0.00000048", "0.00048")
    assert report[0]["start_time"].startswith(f"{LAST_MONTH:%Y-%m}-01")
    refused = client.script(
        """
        import together
        try:
            client.organization.usage.costs.list(organization_id="org-another")
        except together.PermissionDeniedError as error:
            answer = str(error)
        """
    )
    assert "does not belong to organization org-another" in refused
