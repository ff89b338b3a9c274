"""The quote is the final price: estimated, held, trained to the end by the real trainer, captured; to the nano-dollar."""

from __future__ import annotations

import json
import os
import random

import msgspec
import pytest

import factories
from factories import POLICY, make_request
from luthier.billing import audit, ledger
from luthier.datasets.tokenise import tokenise_file
from luthier.db import Database, schema
from luthier.jobs import progress, queue, service
from luthier.jobs.schemas import Outcome, ProgressUpdate
from luthier.protocol import journal, layout, spec
from training_runs import Run

RUNS = int(os.environ.get("QUOTE_RUNS", "8"))  # 200 take some minutes
WORDS = [
    "key",
    "balance",
    "refused",
    "upload",
    "line",
    "seven",
    "cancelled",
    "refund",
    "restart",
    "price",
    "epoch",
    "token",
    "step",
    "model",
    "file",
]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('price') / 'luthier.db'}")
    schema.upgrade(database)
    yield database
    database.dispose()


def make_rows(rng: random.Random, kind: str, most: int) -> list[dict]:
    """Return rows of which the first is short enough for every sequence length."""
    return [make_row(rng, kind, 1), *(make_row(rng, kind, 3) for _ in range(rng.randrange(most)))]


def make_row(rng: random.Random, kind: str, size: int) -> dict:
    def words(most):
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most if size > 1 else 1)))

    if kind == "text":
        return {"text": words(60)}
    if kind == "instruction":
        return {"prompt": words(20), "completion": words(40)}
    turns = [
        {"role": role, "content": words(20)} for _ in range(rng.randint(1, size)) for role in ("user", "assistant")
    ]
    return {"messages": turns}


def make_wishes(rng: random.Random) -> dict:
    """Return wire fields of a create, any that a price can depend on."""
    lora = {"type": "Lora", "lora_r": 4}
    return {
        "n_epochs": rng.randint(1, 3),
        "n_checkpoints": rng.randint(1, 2),
        "n_evals": rng.choice([0, 0, 1, 3]),
        "batch_size": rng.choice([1, 2, 5, "max"]),
        "gradient_accumulation_steps": rng.randint(1, 3),
        "packing": rng.random() < 0.7,
        "max_seq_length": rng.choice([64, 100, 256, 512]),
        "training_type": rng.choice([lora, lora, {"type": "Full"}]),
        "training_method": {"method": "sft", "train_on_inputs": rng.choice(["auto", True, False])},
        "random_seed": rng.randint(0, 9),
    }


def tokenise(path, rows, model_dir, wishes):
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = wishes["training_method"]["train_on_inputs"]
    return msgspec.to_builtins(
        tokenise_file(source, model_dir, path, max_seq_length=wishes["max_seq_length"], train_on_inputs=chosen)
    )


@pytest.mark.parametrize("seed", range(RUNS))
def test_quote_hold_and_charge_are_the_same_number_and_the_trainer_uses_what_is_billed(
    database, clock, tiny, tmp_path, seed
):
    rng = random.Random(seed)
    wishes, kind = make_wishes(rng), rng.choice(["text", "instruction", "messages"])
    run_dir = tmp_path / "run"
    counts = {
        role: tokenise(run_dir / name, make_rows(rng, kind, most), tiny, wishes)
        for role, name, most in (("train", layout.TRAIN_TOKENS, 12), ("validation", layout.VALIDATION_TOKENS, 4))
    }
    job, quote = sell(database, clock, wishes, counts)
    messages = train(run_dir, tiny, job)
    charged = finish(database, clock, job, messages)

    assert quote.price_nanos == job.price_nanos == charged == quote.billed_tokens * quote.rate_nanos
    (started,) = (one for one in messages if isinstance(one, journal.TrainingStarted))
    assert started.total_steps == quote.total_steps
    metrics = [one for one in messages if isinstance(one, journal.Metric)]
    assert sum(one.kind == "eval" for one in metrics) == quote.evaluations
    if wishes["packing"]:
        assert sum(one.tokens for one in metrics) == quote.billed_tokens
    assert audit.verify(database).problems == []


def sell(database, clock, wishes, counts):
    """Estimate and create the job; return it and its quote."""
    with database.transaction() as tx:
        who = factories.make_principal(tx, now=clock.now())
        model = factories.make_model(tx, now=clock.now())
        files = {}
        for role, counted in counts.items():
            files[role] = factories.make_file(tx, who, now=clock.now(), filename=f"{role}.jsonl")
            factories.make_tokenization(
                tx,
                who,
                files[role],
                now=clock.now(),
                max_seq_length=wishes["max_seq_length"],
                train_on_inputs=wishes["training_method"]["train_on_inputs"],
                counts=counted,
            )
        request = make_request(factories.Inputs(model, files["train"], files["validation"]), **wishes)
        quote = service.estimate(tx, who, request, policy=POLICY, now=clock.now()).quote
        job = service.create(tx, who, request, policy=POLICY, now=clock.now(), idempotency_key=None)
        assert job.state == "queued", job.why
        assert ledger.find_hold(tx, job.id).amount_nanos == quote.price_nanos
    return job, quote


def train(run_dir, tiny, job):
    """Run the job with the real trainer; return its journal."""
    training_spec = spec.TrainingSpec(
        version=spec.VERSION,
        job_id=job.id,
        base_model=spec.BaseModel(name=job.base_model, revision="r1", path=str(tiny)),
        hyperparameters=job.hyperparameters,
        device=spec.Device(kind="cpu", precision="fp32", threads=1),
        recipe=spec.Recipe(output_name=job.output_name, training_file="x.jsonl", training_file_sha256="ab" * 32),
        lease_s=1e6,
    )
    (run_dir / layout.LEASE).touch()
    spec.write_spec(run_dir / layout.SPEC, training_spec)
    return Run(run_dir, training_spec).train()


def finish(database, clock, job, messages) -> int:
    """Settle the job as the supervisor does after these messages; return what was charged."""
    ended = messages[-1]
    assert isinstance(ended, journal.Finished)
    with database.transaction() as tx:
        claim = queue.claim(tx, owner="supervisor-1", lease_s=30, now=clock.now())
        assert claim.job_id == job.id
        progress.record(tx, job.id, claim.token, ProgressUpdate(step=ended.step), now=clock.now())
        for state, event in (("compressing", "model_compressing"), ("uploading", "model_uploading")):
            progress.move(tx, job.id, claim.token, state, event, "x", now=clock.now())
        progress.settle(tx, job.id, claim.token, Outcome(state="completed"), now=clock.now())
        return ledger.find_hold(tx, job.id).captured_nanos
