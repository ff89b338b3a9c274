from __future__ import annotations

import pytest

import factories
from luthier.accounts import service as accounts
from luthier.catalog import service as catalog

ROUTE = "/api/fine-tunes/resolve"
PARAMETERS = (
    "n_epochs", "n_checkpoints", "n_evals", "batch_size", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler", "warmup_ratio", "max_grad_norm", "weight_decay", "random_seed", "packing", "max_seq_length",
    "training_type", "training_method", "train_on_inputs",
)  # fmt: skip
NOT_UPLOADED = {"model": factories.MODEL, "training_file": "train.jsonl"}


@pytest.fixture
def inputs(service):
    """A model and checked files."""
    with service.database.transaction() as tx:
        now = service.clock.now()
        owner = accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=now)
        return factories.make_inputs(tx, owner, now=now, tokens=1000, validation_tokens=300)


@pytest.fixture
def builtins(service):
    """The built-in models as a first start leaves them: known, not fetched."""
    with service.database.transaction() as tx:
        catalog.ensure_builtins(tx, now=service.clock.now())


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"batch_size": "max", "max_seq_length": 512, "suffix": "mine"},
        {"training_type": {"type": "Full"}, "lr_scheduler": {"lr_scheduler_type": "linear"}, "n_epochs": 3},
        {
            "training_type": {"type": "Lora", "lora_r": 4},
            "training_method": {"train_on_inputs": True},
            "packing": False,
        },
    ],
)
def test_resolve_when_request_is_right_then_the_values_are_those_of_the_job(client, inputs, choices):
    body = {"model": inputs.model, "training_file": inputs.training_file, **choices}
    resolved = client.post(ROUTE, json=body).json()
    job = client.post("/v1/fine-tunes", json=body).json()
    assert resolved["hyperparameters"] == {name: job[name] for name in PARAMETERS}
    assert (resolved["model"], resolved["suffix"], resolved["warnings"]) == (job["model"], job.get("suffix"), [])


def test_resolve_when_files_are_not_uploaded_then_they_are_not_asked_for_and_nothing_is_created(client, builtins):
    response = client.post(ROUTE, json={**NOT_UPLOADED, "validation_file": "val.jsonl", "n_evals": 2})
    assert response.status_code == 200
    assert response.json()["hyperparameters"]["n_evals"] == 2
    assert client.get("/v1/fine-tunes").json()["data"] == []
    assert client.get("/v1/files").json()["data"] == []


def test_resolve_when_much_is_wrong_then_all_of_it_is_told_at_once(client, builtins):
    """Those that bear on the price and those that do not."""
    wrong = {"n_epochs": 99, "learning_rate": 7, "suffix": "a b", "n_evals": 2, "training_type": {"lora_r": 0}}
    response = client.post(ROUTE, json={"model": factories.MODEL, **wrong})
    assert response.status_code == 400
    told = {detail["param"] for detail in response.json()["error"]["details"]}
    assert told == {"training_file", "n_epochs", "learning_rate", "suffix", "n_evals", "training_type.lora_r"}


def test_resolve_when_model_is_unknown_then_404(client, builtins):
    assert client.post(ROUTE, json={**NOT_UPLOADED, "model": "luthier/tyni"}).status_code == 404


def test_resolve_when_something_has_no_effect_then_it_warns(client, builtins):
    body = {**NOT_UPLOADED, "validation_file": "val.jsonl", "colour": "red"}
    unknown, unused = client.post(ROUTE, json=body).json()["warnings"]
    assert "colour" in unknown
    assert "n_evals is 0" in unused
