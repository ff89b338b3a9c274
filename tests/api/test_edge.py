"""What holds for every request: ids, error bodies, limits of bodies, health, metrics, logs."""

from __future__ import annotations

import httpx
import pytest

import factories
from luthier.accounts import service as accounts

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

JSON = {"Content-Type": "application/json"}


def get_error(response) -> dict:
    error = response.json()["error"]
    assert {"message", "type", "param", "code", "hint", "request_id"} <= set(error)
    assert error["request_id"] == response.headers["x-request-id"]
    return error


def test_unknown_route_is_404_that_names_it(service, client):
    response = client.get("/v1/nonsense")
    assert response.status_code == 404
    assert "GET /v1/nonsense" in get_error(response)["message"]


def test_unknown_method_is_405_that_names_the_right_one(service, client):
    response = client.patch("/v1/files")
    assert response.status_code == 405
    assert get_error(response)["code"] == "method_not_allowed"
    assert "GET" in response.headers["allow"] or "POST" in response.headers["allow"]


def test_wrong_shape_is_422_that_names_every_field(service, client):
    response = client.post("/api/keys", json={"name": 3, "is_admin": "perhaps", "colour": "red"})
    assert response.status_code == 422
    error = get_error(response)
    assert error["param"] == "name"
    assert "3" in error["message"]
    assert {detail["param"] for detail in error["details"]} == {"name", "is_admin", "colour"}


@pytest.mark.parametrize("route", ["/api/keys", "/v1/fine-tunes"])
@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", None])
def test_json_when_not_announced_as_such_is_415_that_names_the_header(service, client, route, content_type):
    """What curl -d sends."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = client.post(route, content=b'{"name": "ci", "model": "luthier/tiny"}', headers=headers)
    assert response.status_code == 415
    error = get_error(response)
    assert error["code"] == "not_announced_as_json"
    assert "Content-Type: application/json" in error["hint"]


def test_body_when_there_is_none_is_422_as_ever(service, client):
    response = client.post("/api/keys")
    assert response.status_code == 422
    assert get_error(response)["code"] == "invalid_request_body"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[" * 10_000, "nested deeper"),
        (b"[" * 10_000 + b"]" * 10_000, "nested deeper"),
        (b'{"name":' * 100_000, "nested deeper"),
        (b'{"name": NaN}', "invalid"),
        (b'{"name": Infinity}', "invalid"),
        (b'{"name": "\\ud800"}', ""),
        (b'{"name": "\xff"}', "utf-8"),
        (b'{"name": "a", "name": "b"}', "twice"),
        (b"{", ""),
        (b"nonsense", ""),
    ],
    ids=["open", "deep", "objects", "nan", "infinity", "surrogate", "latin", "twice", "cut", "words"],
)
def test_json_when_it_is_not_plain_json_is_400(service, client, body, reason):
    response = client.post("/api/keys", content=body, headers=JSON)
    assert response.status_code == 400
    error = get_error(response)
    assert error["code"] == "invalid_json"
    assert reason in error["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_body_when_too_large_is_413(service, client, chunked):
    body = b"x" * (service.settings.request_body_max_bytes + 1)
    content = iter([body[: len(body) // 2], body[len(body) // 2 :]]) if chunked else body
    response = client.post("/v1/fine-tunes", content=content, headers=JSON)
    assert response.status_code == 413
    assert get_error(response)["code"] == "body_too_large"


def test_key_when_unknown_is_403_in_the_wires_shape(service):
    with service.connect("lk-unknown") as stranger:
        response = stranger.get("/v1/files")
    assert response.status_code == 403
    error = get_error(response)
    assert (error["code"], error["type"]) == ("invalid_api_key", "permission_error")


@pytest.mark.parametrize("header", ["", "Bearer", "Basic dXNlcjpwYXNz", "lk-naked"])
def test_key_when_there_is_none_is_401(service, header):
    response = httpx.get(f"{service.base_url}/v1/files", headers={"Authorization": header})
    assert response.status_code == 401
    assert get_error(response)["code"] == "missing_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


def test_last_use_of_a_key_is_seen(service, client):
    service.clock.advance(3600)
    (key,) = client.get("/api/keys").json()["data"]
    assert key["last_used_at"].startswith("2026-01-01T13:00:00")


def test_health_and_readiness_are_open_and_good(service):
    assert httpx.get(f"{service.base_url}/healthz").json() == {"status": "ok"}
    response = httpx.get(f"{service.base_url}/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "ready")


def test_readiness_when_the_store_is_gone_says_so(service):
    (service.store.root / ".unfinished").rmdir()
    response = httpx.get(f"{service.base_url}/readyz")
    assert response.status_code == 503
    assert response.json()["checks"]["database"] == "ok"
    assert response.json()["checks"]["storage"] != "ok"


def test_metrics_count_by_route_and_never_by_path(service, client):
    client.get("/v1/files/file-1")
    client.get("/v1/files/file-2")
    client.get("/secret/path")
    text = httpx.get(f"{service.base_url}/metrics").text
    assert 'luthier_http_requests_total{method="GET",route="/v1/files/{file_id}",status="404"} 2.0' in text
    assert 'route="unrouted"' in text
    assert "secret" not in text


def test_metrics_count_live_jobs_by_state(service):
    with service.database.transaction() as tx:
        owner = accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=service.clock.now())
        factories.make_job(tx, owner, now=service.clock.now(), state="queued")
    text = httpx.get(f"{service.base_url}/metrics").text
    assert 'luthier_jobs{state="queued"} 1.0' in text
    assert 'luthier_jobs{state="running"} 0.0' in text


def test_openapi_document_names_every_route(service):
    document = httpx.get(f"{service.base_url}/openapi.json").json()
    assert {"/v1/files", "/v1/files/upload", "/v1/uploads/{upload_id}", "/api/keys", "/readyz"} <= set(
        document["paths"]
    )
