from __future__ import annotations

import pytest


def test_request_without_key_is_401_with_the_way_out(service, client):
    del client.headers["Authorization"]
    response = client.get("/api/keys")
    assert response.status_code == 401
    error = response.json()["error"]
    assert error["code"] == "missing_api_key"
    assert "Authorization" in error["hint"]
    assert error["request_id"] == response.headers["x-request-id"]


def test_key_when_made_works_and_is_listed_without_its_secret(service, client):
    service.clock.advance(1)
    made = client.post("/api/keys", json={"name": "ci"}).json()
    assert made["secret"].startswith("lk-")
    with service.connect(made["secret"]) as other:
        assert other.get("/api/keys").json()["error"]["code"] == "admin_only"
    listed = client.get("/api/keys").json()["data"]
    assert [key["name"] for key in listed] == ["admin", "ci"]
    assert made["secret"] not in client.get("/api/keys").text


def test_key_when_revoked_is_403_that_says_so(service, client):
    made = client.post("/api/keys", json={"name": "ci", "is_admin": True}).json()
    assert client.delete(f"/api/keys/{made['id']}").status_code == 200
    with service.connect(made["secret"]) as other:
        response = other.get("/api/keys")
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "revoked" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "expires_at", ["9999-12-31T23:59:59-14:00", "2036-02-01T00:00:00Z", "0001-01-01T00:00:00+14:00"]
)
def test_key_when_it_expires_beyond_ten_years_is_refused_and_the_list_still_works(client, expires_at):
    response = client.post("/api/keys", json={"name": "far", "expires_at": expires_at})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_expiry"
    assert response.json()["error"]["param"] == "expires_at"
    assert [key["name"] for key in client.get("/api/keys").json()["data"]] == ["admin"]


def test_key_when_it_expires_in_another_zone_is_shown_in_utc(client):
    made = client.post("/api/keys", json={"name": "ci", "expires_at": "2027-01-01T01:00:00+01:00"}).json()
    assert made["expires_at"] == "2027-01-01T00:00:00Z"
