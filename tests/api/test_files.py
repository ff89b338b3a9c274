from __future__ import annotations

import httpx
import msgspec
import pytest

import factories
from luthier.accounts import service as accounts
from luthier.datasets.report import Issue, Report
from luthier.files import service as files

DATA = b'{"text": "hello"}\n' * 10
FIELDS = {"file_name": "train.jsonl", "purpose": "fine-tune", "file_type": "jsonl"}


def upload(client, data=DATA, **changes) -> str:
    response = client.post("/v1/files/upload", data={**FIELDS, **changes}, files={"file": ("t.jsonl", data)})
    assert response.status_code == 200, response.text
    return response.json()["id"]


@pytest.mark.parametrize("way", ["urlencoded", "multipart", "urlencoded and query", "query"])
def test_upload_url_is_given_for_each_clients_way_of_asking(service, client, way):
    if way == "multipart":
        response = client.post("/v1/files", files={name: (None, value) for name, value in FIELDS.items()})
    else:
        response = client.post(
            "/v1/files",
            data=FIELDS if "urlencoded" in way else None,
            params=FIELDS if "query" in way else None,
        )
    assert response.status_code == 302, response.text
    url = response.headers["Location"]
    assert url.startswith(f"{service.base_url}/v1/uploads/{response.headers['X-Together-File-Id']}?token=")
    assert httpx.put(url, content=DATA).json()["filename"] == "train.jsonl"


def test_upload_url_when_field_is_missing_names_it(service, client):
    response = client.post("/v1/files", data={"file_name": "t.jsonl", "file_type": "jsonl"})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "purpose"
    assert "fine-tune" in response.json()["error"]["hint"]


def test_file_without_a_check_has_the_fields_that_clients_read(service, client):
    file_id = upload(client)
    file = client.get(f"/v1/files/{file_id}").json()
    assert file == {
        "id": file_id,
        "object": "file",
        "created_at": int(service.clock.now().timestamp()),
        "filename": "train.jsonl",
        "bytes": len(DATA),
        "purpose": "fine-tune",
        "FileType": "jsonl",
        "Processed": False,
        "LineCount": None,
        "processing_status": "QUEUED",
        "validation_report": None,
    }
    assert client.post(f"/v1/files/{file_id}/preprocess").json() == file
    assert client.get("/v1/files").json() == {"object": "list", "data": [file]}


def test_file_when_checked_shows_the_report(service, client):
    file_id = upload(client)
    issue = Issue(line=2, path="$.text", code="not_a_string", message="text is a number: 3", hint="quote it")
    report = Report(
        valid=False, dataset_format="general", nlines=10, size_bytes=len(DATA), error_count=1, errors=[issue]
    )
    with service.database.transaction() as tx:
        files.record_check(tx, file_id, msgspec.to_builtins(report), now=service.clock.now())
    file = client.get(f"/v1/files/{file_id}").json()
    assert (file["processing_status"], file["Processed"], file["LineCount"]) == ("INVALID_FORMAT", True, 10)
    shown = file["validation_report"]
    assert (shown["valid"], shown["error_type"], shown["file_id"]) == (False, "INVALID_FORMAT", file_id)
    assert shown["errors"] == [msgspec.to_builtins(issue)]


def test_file_when_the_check_failed_by_our_fault_says_why(service, client):
    file_id = upload(client)
    with service.database.transaction() as tx:
        files.claim_check(tx, now=service.clock.now(), claim_s=60)
        files.fail_check(tx, file_id, "the check ran out of memory", now=service.clock.now(), is_final=True)
    file = client.get(f"/v1/files/{file_id}").json()
    assert (file["processing_status"], file["Processed"]) == ("FAILED", False)
    assert file["validation_report"]["error"] == "the check ran out of memory"
    assert "error_type" not in file["validation_report"]


def test_file_of_another_project_is_not_found_by_any_route(service, client, other_project_key):
    file_id = upload(client)
    with service.connect(other_project_key) as other:
        assert other.get("/v1/files").json()["data"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content"), ("POST", "/preprocess")):
            response = other.request(method, f"/v1/files/{file_id}{path}")
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "file_not_found"
    assert client.get(f"/v1/files/{file_id}/content").content == DATA


def test_delete_while_a_job_uses_the_file_is_a_conflict(service, client):
    with service.database.transaction() as tx:
        owner = accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=service.clock.now())
        job = factories.make_job(tx, owner, now=service.clock.now(), state="running")
    response = client.delete(f"/v1/files/{job.training_file_id}")
    assert response.status_code == 409
    assert job.id in response.json()["error"]["message"]
    assert client.get(f"/v1/files/{job.training_file_id}").status_code == 200


def test_delete_takes_the_file_away_at_once(service, client):
    file_id = upload(client)
    assert client.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        assert client.request(method, f"/v1/files/{file_id}{path}").status_code == 404


@pytest.mark.parametrize(
    ("header", "status", "expected", "content_range"),
    [
        (None, 200, DATA, None),
        ("bytes=0-1", 206, DATA[:2], "bytes 0-1/180"),
        ("bytes=170-", 206, DATA[170:], "bytes 170-179/180"),
        ("bytes=-5", 206, DATA[-5:], "bytes 175-179/180"),
        ("bytes=0-999", 206, DATA, "bytes 0-179/180"),
        ("bytes=180-", 416, None, None),
        ("bytes=0-1,5-6", 200, DATA, None),
        ("rows=0-1", 200, DATA, None),
    ],
)
def test_content_when_a_range_is_asked_for_is_exactly_that(service, client, header, status, expected, content_range):
    file_id = upload(client)
    response = client.get(f"/v1/files/{file_id}/content", headers={"Range": header} if header else {})
    assert response.status_code == status
    if expected is not None:
        assert response.content == expected
        assert response.headers["content-length"] == str(len(expected))
    assert response.headers.get("content-range") == content_range


def test_content_has_a_name_that_cannot_break_out_of_its_header(service, client):
    file_id = upload(client, file_name='../a"b;\r\nX-Evil: 1\x1b[31mé%22.jsonl')
    response = client.get(f"/v1/files/{file_id}/content")
    assert "x-evil" not in response.headers
    disposition = response.headers["content-disposition"]
    assert disposition.startswith("attachment; filename=")
    assert disposition.count('"') == 2
    assert "/" not in disposition


def test_upload_url_when_public_url_is_set_begins_with_it(settings, database, clock, run_service):
    settings = settings.model_copy(update={"public_url": "https://luthier.example.com/"})
    with run_service(settings, database, None, clock) as running, running.connect() as client:
        response = client.post("/v1/files", data=FIELDS)
    assert response.headers["Location"].startswith("https://luthier.example.com/v1/uploads/file-")


def test_upload_when_free_space_is_below_the_reserve_is_refused(settings, database, clock, run_service):
    settings = settings.model_copy(update={"disk_reserve_bytes": 2**60})
    with run_service(settings, database, None, clock) as running, running.connect() as client:
        response = client.post("/v1/files", data=FIELDS)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "disk_full"
