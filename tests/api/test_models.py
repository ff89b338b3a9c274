from __future__ import annotations

import pytest

import factories
from luthier.accounts import service as accounts
from luthier.catalog import service as catalog
from luthier.catalog.tables import BaseModelRow
from luthier.jobs import supervisors

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
LIMIT_FIELDS = {
    "default_gradient_accumulation_steps", "full_training", "lora_training", "max_learning_rate", "max_num_checkpoints",
    "max_num_epochs", "max_num_evals", "max_seq_length_dpo", "max_seq_length_sft", "merge_output_lora",
    "min_learning_rate", "min_max_seq_length", "model_name", "supports_full_training", "supports_reasoning",
    "supports_tools", "supports_vision",
}  # fmt: skip


@pytest.fixture(autouse=True)
def builtins(service):
    """The built-in models as a first start leaves them: known, not fetched."""
    with service.database.transaction() as tx:
        catalog.ensure_builtins(tx, now=service.clock.now())


def get_limits(client, name: str):
    return client.get("/v1/fine-tunes/models/limits", params={"model_name": name})


def test_limits_are_whole_before_the_weights_are_here(client):
    for name in (factories.MODEL, SMOLLM2):
        limits = get_limits(client, name).json()
        assert set(limits) == LIMIT_FIELDS
        assert limits["model_name"] == name
        assert limits["lora_training"].keys() == {
            "default_rank", "max_rank", "min_batch_size", "max_batch_size", "max_batch_size_dpo", "target_modules",
        }  # fmt: skip
        assert limits["full_training"].keys() == {"min_batch_size", "max_batch_size", "max_batch_size_dpo"}


def test_limits_of_a_job_and_of_its_output_are_those_of_its_base_model(client, service):
    with service.database.transaction() as tx:
        inputs = factories.make_inputs(tx, find_principal(service, tx), now=service.clock.now())
    job = client.post("/v1/fine-tunes", json={"model": inputs.model, "training_file": inputs.training_file}).json()
    for name in (job["id"], job["model_output_name"]):
        assert get_limits(client, name).json()["model_name"] == inputs.model


def find_principal(service, tx):
    return accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=service.clock.now())


def test_limits_of_an_unknown_model_is_404_with_a_suggestion(client):
    response = get_limits(client, "luthier/tinny")
    assert response.status_code == 404
    assert "luthier/tiny" in response.json()["error"]["hint"]
    assert client.get("/v1/fine-tunes/models/limits").json()["error"]["param"] == "model_name"


def test_supported_models_and_models_name_the_same(client):
    supported = client.get("/v1/fine-tunes/models/supported").json()
    models = client.get("/v1/models").json()
    assert set(supported["models"]) == {model["id"] for model in models} == {factories.MODEL, SMOLLM2}
    assert [limits["model_name"] for limits in supported["detailed_models"]] == supported["models"]
    assert all(model["object"] == "model" and model["pricing"] == {} for model in models)


def test_model_when_added_is_listed_as_queued_and_can_be_removed(client):
    new = {"name": "acme/small", "source": "hub", "reference": "acme/small"}
    added = client.post("/api/models", json=new)
    assert (added.status_code, added.json()["status"]) == (201, "queued")
    assert client.get("/api/models/acme/small").json() == added.json()
    assert "acme/small" in [model["name"] for model in client.get("/api/models").json()["data"]]
    waiting = get_limits(client, "acme/small")
    assert (waiting.status_code, waiting.json()["error"]["code"]) == (409, "model_not_ready")
    assert client.delete("/api/models/acme/small").json() == {"name": "acme/small", "removed": True}
    assert client.get("/api/models/acme/small").status_code == 404


def test_model_when_its_folder_is_the_servers_own_is_refused(client, home, tmp_path):
    """Another project's run, its objects, or a link to them: the server could read what this key may not."""
    (home / "runs" / "ft-1").mkdir(parents=True)
    (tmp_path / "link").symlink_to(home / "runs")
    for folder in (home, home / "runs" / "ft-1", home / "models" / ".." / "objects", tmp_path / "link" / "ft-1"):
        response = client.post("/api/models", json={"name": "my/model", "source": "folder", "reference": str(folder)})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("model_folder_private", "reference")
        assert str(folder) in error["message"]
    assert client.get("/api/models/my/model").status_code == 404


def test_model_when_a_job_uses_it_cannot_be_removed(client, service):
    with service.database.transaction() as tx:
        admin = accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=service.clock.now())
        job = factories.make_job(tx, admin, now=service.clock.now())
        tx.get(BaseModelRow, factories.MODEL).is_builtin = 0
    response = client.delete(f"/api/models/{factories.MODEL}")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "model_in_use")
    assert job.id in response.json()["error"]["message"]
    client.post(f"/v1/fine-tunes/{job.id}/cancel")
    assert client.delete(f"/api/models/{factories.MODEL}").json()["removed"] is True


def test_builtin_model_cannot_be_removed(client):
    response = client.delete(f"/api/models/{factories.MODEL}")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "model_is_builtin")


def test_model_of_a_wrong_form_is_refused(client):
    for wrong in ({"name": "../up"}, {"source": "usb"}, {"reference": 7}, {"colour": "red"}):
        new = {"name": "acme/small", "source": "hub", "reference": "acme/small", **wrong}
        response = client.post("/api/models", json=new)
        assert response.status_code in {400, 422}, wrong
        assert response.json()["error"]["param"] == next(iter(wrong))


def test_whoami_is_nested_and_flat(client):
    for path in ("/v1/whoami", "/v3/whoami"):
        me = client.get(path).json()
        assert me["type"] == "project_api_key"
        assert me["api_key"]["id"] == me["api_key_id"]
        assert me["organization"] == {"id": me["organization_id"], "name": me["organization_name"]}
        assert me["project"] == {"id": me["project_id"], "name": me["project_name"], "slug": me["project_slug"]}
    assert me["project_slug"] == "default"


def test_projects_are_one_page_with_the_keys_own(client):
    (project,) = client.get("/v1/projects").json()["data"]
    assert project["id"] == client.get("/v1/whoami").json()["project_id"]
    after = client.get("/v1/projects", params={"after": project["id"], "limit": 1}).json()
    assert (after["data"], after["next_cursor"]) == ([], None)


def test_status_counts_slots_of_supervisors_that_are_alive(client, service):
    assert client.get("/api/status").json()["supervisors"] == []
    with service.database.transaction() as tx:
        for name in ("a", "b"):
            supervisors.heartbeat(tx, id=name, host="here", pid=7, slots=2, now=service.clock.now())
        factories.make_job(tx, find_principal(service, tx), now=service.clock.now(), state="running")
    status = client.get("/api/status").json()
    assert (status["slots"], status["running"], status["queued"], len(status["supervisors"])) == (4, 1, 0, 2)
    service.clock.advance(3600)
    assert client.get("/api/status").json()["slots"] == 0
