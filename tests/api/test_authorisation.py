"""Who may do what, for every route of the app's own OpenAPI document: a new route fails here until it is covered."""

from __future__ import annotations

import re

import pytest

import factories
from luthier.accounts import service as accounts
from luthier.artifacts import service as artifacts

METHODS = {"get", "post", "put", "patch", "delete"}

# Open to anybody: probes, the document itself, what carries its own signature (upload URLs, webhooks), and the page
# that a card's owner comes back to.
PUBLIC = {
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "PUT /v1/uploads/{upload_id}",
    "POST /api/billing/webhooks/stripe",
    "GET /api/billing/return",
}
ADMIN = {
    "GET /api/keys",
    "POST /api/keys",
    "DELETE /api/keys/{key_id}",
    "POST /api/models",
    "DELETE /api/models/{name}",
    "PUT /api/billing/limits/{scope}/{scope_id}",
    "DELETE /api/billing/limits/{scope}/{scope_id}",
    "POST /api/billing/cards",
    "POST /api/billing/cards/setups",
    "PUT /api/billing/cards/{card_id}/default",
    "DELETE /api/billing/cards/{card_id}",
    "POST /api/billing/payments",
    "POST /api/billing/payments/{payment_id}/refunds",
    "PUT /api/billing/auto-recharge",
}

# What a route needs besides its path to come as far as looking something up.
QUERIES = {"GET /v1/finetune/download": {"ft_id": "{job_id}"}}
BODIES = {
    "PUT /api/billing/limits/{scope}/{scope_id}": {"monthly": "5"},
    "POST /api/billing/payments/{payment_id}/refunds": {"reason": "a test"},
}
# Base models belong to the server, not to a project: whoever has a key sees them. A scope is a word of the route's own.
SHARED = {"name", "scope"}


@pytest.fixture
def owned(service) -> dict[str, str]:
    """One of everything that belongs to the default project, by the name of its path parameter."""
    now = service.clock.now()
    with service.database.transaction() as tx:
        owner = accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=now)
        job = factories.make_job(tx, owner, now=now, state="completed")
        artifacts.record(
            tx,
            project_id=owner.project_id,
            job_id=job.id,
            step=10,
            kind="merged",
            is_final=True,
            object_key="artifacts/one",
            size_bytes=3,
            sha256="ab" * 32,
            weights_sha256=None,
            now=now,
        )
        key, _ = accounts.create_key(
            tx,
            project_id=owner.project_id,
            name="spare",
            is_admin=False,
            expires_at=None,
            master_key=service.master_key,
            now=now,
        )
        money = factories.make_card_and_payment(tx, owner, now=now)
    own = {"job_id": job.id, "file_id": job.training_file_id, "key_id": key.id, "name": job.base_model}
    return {**own, **money, "scope": "key", "scope_id": key.id}


@pytest.fixture
def routes(client) -> list[str]:
    """Every route that needs a key, as ``METHOD /path``."""
    paths = client.get("/openapi.json").json()["paths"]
    found = {f"{method.upper()} {path}" for path, item in paths.items() for method in item if method in METHODS}
    assert found >= PUBLIC | ADMIN | set(QUERIES), "a route named here is gone"
    return sorted(found - PUBLIC)


def call(client, route: str, values: dict[str, str]):
    """Send a request to a route, its parameters filled in."""
    method, path = route.split(" ")
    query = "&".join(f"{name}={value}" for name, value in QUERIES.get(route, {}).items())
    return client.request(method, f"{path}?{query}".format(**values), json=BODIES.get(route))


def list_parameters(route: str) -> set[str]:
    text = route + "".join(QUERIES.get(route, {}).values())
    return set(re.findall(r"{(\w+)}", text))


def test_every_route_without_key_is_401(client, routes, owned):
    del client.headers["Authorization"]
    answers = {route: call(client, route, owned) for route in routes}
    assert {route: (a.status_code, a.json()["error"]["code"]) for route, a in answers.items()} == dict.fromkeys(
        routes, (401, "missing_api_key")
    )


def test_every_route_with_a_key_that_nobody_made_is_403_that_says_so(service, routes, owned):
    with service.connect("lk-" + "x" * 43) as stranger:
        answers = {route: call(stranger, route, owned) for route in routes}
    assert {route: (a.status_code, a.json()["error"]["code"]) for route, a in answers.items()} == dict.fromkeys(
        routes, (403, "invalid_api_key")
    )


def test_every_route_of_something_is_404_for_another_project(service, routes, owned, other_project_key):
    with service.connect(other_project_key) as other:
        answers = {route: call(other, route, owned) for route in routes if list_parameters(route) - SHARED}
    assert {route: a.status_code for route, a in answers.items()} == dict.fromkeys(answers, 404)
    assert answers


def test_nothing_of_a_project_is_listed_for_another(service, owned, other_project_key):
    with service.connect(other_project_key) as other:
        for path in ("/v1/fine-tunes", "/v1/files"):
            assert other.get(path).json()["data"] == []
        assert owned["key_id"] not in other.get("/api/keys").text
        create = {"model": owned["name"], "training_file": owned["file_id"]}
        assert other.post("/v1/fine-tunes", json=create).status_code == 404
        assert other.post("/v1/fine-tunes/estimate-price", json=create).status_code == 404


def test_another_project_changed_nothing(service, client, routes, owned, other_project_key):
    with service.connect(other_project_key) as other:
        for route in routes:
            if list_parameters(route) - SHARED and not route.startswith("GET"):
                call(other, route, owned)
    assert client.get(f"/v1/fine-tunes/{owned['job_id']}").json()["status"] == "completed"
    assert client.get(f"/v1/files/{owned['file_id']}").status_code == 200
    assert owned["key_id"] in client.get("/api/keys").text


def test_every_route_of_something_unknown_is_404(client, routes, owned):
    for unknown in ("ft-00000000-0000-0000-0000-000000000000", "x", "-", "a" * 5000, "%F0%9F%92%A5", "%FF"):
        values = dict.fromkeys(owned, unknown) | {"scope": "key"}
        answers = {route: call(client, route, values) for route in routes if list_parameters(route)}
        assert {route: a.status_code for route, a in answers.items()} == dict.fromkeys(answers, 404), unknown
        assert all(a.json()["error"]["hint"] for a in answers.values())


def test_every_route_with_nul_in_its_url_is_400(client, routes, owned):
    values = dict.fromkeys([*owned, "upload_id"], "a%00b") | {"scope": "key"}
    answers = {route: call(client, route, values) for route in [*routes, *PUBLIC] if list_parameters(route)}
    answers["in the query"] = client.get("/v1/fine-tunes?after=a%00b")
    assert {route: a.json()["error"]["code"] for route, a in answers.items()} == dict.fromkeys(answers, "invalid_url")


def test_admin_routes_are_403_for_an_ordinary_key(service, routes, owned):
    with service.connect(service.make_key()) as ordinary:
        answers = {route: call(ordinary, route, owned) for route in routes}
    refused = {route for route, a in answers.items() if a.status_code == 403}
    assert refused == ADMIN
    assert {answers[route].json()["error"]["code"] for route in refused} == {"admin_only"}


def test_every_path_parameter_is_known_here(routes, owned):
    assert {name for route in routes for name in list_parameters(route)} == set(owned)
