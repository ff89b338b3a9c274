"""Whole jobs in this process: what they learn, what they write, and that they do it twice the same."""

import itertools
import json
import math
import shutil
import subprocess
import sys
import threading

import msgspec
import peft
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from luthier.protocol import journal, layout, spec
from luthier.training import devices, loop, watch
from training_runs import make_rows

ROWS = make_rows(10, seed=1)
VALIDATION = make_rows(4, seed=2)
IDS = torch.tensor([ROWS[0][0]])


def _list_losses(messages, kind="train"):
    return [message.loss for message in messages if isinstance(message, journal.Metric) and message.kind == kind]


def _find_exported(messages, kind):
    return next(message for message in messages if isinstance(message, journal.Exported) and message.kind == kind)


def _compute_logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_journal_when_all_goes_well_tells_it_in_order(make_run):
    run = make_run(ROWS, validation=VALIDATION, n_epochs=2, n_evals=2, n_checkpoints=2, packing=False, batch_size=4)
    messages = run.train()
    names = [type(message).__name__ + getattr(message, "kind", "") for message in messages]
    epoch = ["Metrictrain"] * 3 + ["EpochComplete", "Metriceval"]
    assert names == [
        *("Started", "ModelLoaded", "TrainingStarted", *epoch, "CheckpointSavedadapter", *epoch),
        *("Exporting", "Exportedadapter", "Exportedmerged", "Finished"),
    ]
    assert messages[2].total_steps == 6
    assert messages[2].train_tokens == sum(len(ids) for ids, _ in ROWS)
    assert messages[-1] == journal.Finished(at=messages[-1].at, step=6, epochs_completed=2)


def test_metrics_count_every_token_once_an_epoch_and_the_time_that_is_left(make_run):
    messages = make_run(ROWS, validation=VALIDATION, n_epochs=2, n_evals=1, batch_size=1).train()
    train = [message for message in messages if isinstance(message, journal.Metric) and message.kind == "train"]
    assert sum(metric.tokens for metric in train) == 2 * sum(len(ids) for ids, _ in ROWS)
    assert [metric.step for metric in train] == list(range(1, len(train) + 1))
    assert train[-1].epoch == 2.0
    assert all(metric.step_s > 0 and metric.grad_norm > 0 for metric in train)
    assert train[0].seconds_remaining > 0
    (evaluation,) = [one for one in messages if isinstance(one, journal.Metric) and one.kind == "eval"]
    assert (evaluation.step, evaluation.tokens) == (train[-1].step, sum(len(ids) for ids, _ in VALIDATION))


@pytest.mark.parametrize("training_type", [spec.Lora(r=4, alpha=8.0), spec.Full()])
def test_losses_equal_a_plain_loop_over_transformers_and_peft(make_run, tiny, training_type):
    chosen = {"packing": False, "batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 5e-3}
    run = make_run(ROWS, training_type=training_type, weight_decay=0.1, n_epochs=3, **chosen)
    ours = _list_losses(run.train())
    theirs = _train_plainly(run, tiny, training_type)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0] - 0.05  # it learns, so equal losses say something about the steps


def _train_plainly(run, tiny, training_type):
    """The oracle: padded batches, transformers' model and loss, PEFT's adapter, torch's AdamW."""
    from luthier.datasets.tokens import open_tokens
    from luthier.training import lora
    from luthier.training.devices import Place
    from luthier.training.model import load_model
    from luthier.training.plan import make_plan

    chosen = run.spec.hyperparameters
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    if isinstance(training_type, spec.Lora):
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
        model = peft.get_peft_model(model, config)
        torch.manual_seed(chosen.random_seed)  # the same first A: only B starts at zero
        place = Place(torch.device("cpu"), torch.float32)
        ours = lora.attach(load_model(run.spec.base_model, place, trains_all=False).module, training_type)
        for name, layer in ours.items():
            model.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.data.copy_(layer.lora_a)
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1.0)
    offsets = open_tokens(run.path / layout.TRAIN_TOKENS).offsets
    plan = make_plan([end - start for start, end in itertools.pairwise(offsets)], chosen)
    losses = []
    for step in plan.iterate_steps(chosen.random_seed):
        rows = [ROWS[row] for row in step.rows]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
        marks = [list(trained) + [0] * (longest - len(trained)) for _, trained in rows]
        labels = ids.masked_fill(torch.tensor(marks) == 0, -100)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_([*matrices, *vectors], chosen.max_grad_norm)
        progress = (step.number - 1) / plan.total_steps
        for group in optimizer.param_groups:
            group["lr"] = chosen.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_evaluation_loss_is_that_of_the_exported_model_in_transformers(make_run, unpack):
    lora = spec.Lora(r=4, alpha=8.0, dropout=0.5)  # which an evaluation must not draw
    run = make_run(ROWS, validation=VALIDATION, n_evals=1, n_epochs=3, learning_rate=5e-3, training_type=lora)
    messages = run.train()
    folder = unpack(run, _find_exported(messages, "merged").archive)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = []
    for ids, trained in VALIDATION:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        losses += [loss for loss, mark in zip(each.tolist(), trained[1:], strict=True) if mark]
    assert _list_losses(messages, "eval") == [pytest.approx(sum(losses) / len(losses), rel=1e-5)]


def test_accumulation_when_divided_differently_gives_the_same_losses(make_run, monkeypatch):
    whole = _list_losses(make_run(ROWS, batch_size=4, gradient_accumulation_steps=1, packing=False).train())
    parts = _list_losses(make_run(ROWS, batch_size=1, gradient_accumulation_steps=4, packing=False).train())
    monkeypatch.setitem(loop.BATCH_TOKENS, "cpu", 1)
    one_by_one = _list_losses(make_run(ROWS, batch_size=4, gradient_accumulation_steps=1, packing=False).train())
    assert parts == whole
    assert one_by_one == pytest.approx(whole, rel=1e-5)


def test_same_job_twice_writes_the_same_bytes(make_run):
    archives = []
    for _ in range(2):
        run = make_run(ROWS, training_type=spec.Lora(r=4, alpha=8.0, dropout=0.1), threads=2, n_checkpoints=2)
        run.spec = msgspec.structs.replace(run.spec, job_id="ft-same")  # which README.md tells
        kinds = (journal.CheckpointSaved, journal.Exported)
        archives.append([message.archive for message in run.train() if isinstance(message, kinds)])
    assert archives[0] == archives[1]  # by their digests
    assert len(archives[0]) == 3


def test_seed_when_another_gives_other_weights(make_run):
    runs = [make_run(ROWS, random_seed=seed).train() for seed in (1, 2)]
    assert len({_find_exported(messages, "adapter").weights_sha256 for messages in runs}) == 2


def test_adapter_when_exported_loads_into_peft_with_the_logits_of_the_merged_model(make_run, unpack, tiny):
    run = make_run(ROWS, learning_rate=5e-3, n_epochs=3)
    messages = run.train()
    adapter = unpack(run, _find_exported(messages, "adapter").archive)
    merged = unpack(run, _find_exported(messages, "merged").archive)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    before = _compute_logits(base)
    with_adapter = _compute_logits(peft.PeftModel.from_pretrained(base, adapter))
    torch.testing.assert_close(
        _compute_logits(transformers.AutoModelForCausalLM.from_pretrained(merged)), with_adapter, atol=1e-4, rtol=1e-4
    )
    assert (with_adapter - before).abs().max() > 0.1


def test_merged_weights_when_not_adapted_are_the_base_models_bytes(make_run, unpack, tiny):
    run = make_run(ROWS, training_type=spec.Lora(r=4, alpha=8.0, target_modules=("q_proj",)), learning_rate=5e-3)
    merged = load_file(unpack(run, _find_exported(run.train(), "merged").archive) / "model.safetensors")
    base = load_file(tiny / "model.safetensors")
    assert merged.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(4)}
    assert all(merged[name].dtype == base[name].dtype for name in base)


def test_full_training_changes_every_weight_and_loads(make_run, unpack, tiny):
    run = make_run(ROWS, training_type=spec.Full(), n_checkpoints=2, batch_size=1)
    messages = run.train()
    folder = unpack(run, _find_exported(messages, "model").archive)
    trained, base = load_file(folder / "model.safetensors"), load_file(tiny / "model.safetensors")
    assert trained.keys() == base.keys()
    assert all(not torch.equal(base[name], trained[name]) for name in base)
    _compute_logits(transformers.AutoModelForCausalLM.from_pretrained(folder))
    (checkpoint,) = [message for message in messages if isinstance(message, journal.CheckpointSaved)]
    assert checkpoint.kind == "model"
    _compute_logits(transformers.AutoModelForCausalLM.from_pretrained(unpack(run, checkpoint.archive)))


@pytest.mark.parametrize("training_type", [spec.Lora(r=4, alpha=8.0), spec.Full()])
def test_output_when_tied_embeddings_are_stored_twice_is_that_of_the_model_without_the_copy(
    make_run, tiny, tmp_path, training_type
):
    twice = tmp_path / "twice"
    shutil.copytree(tiny, twice)
    weights = load_file(twice / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, twice / "model.safetensors", metadata={"format": "pt"})
    runs = [make_run(ROWS, model=folder, training_type=training_type).train() for folder in (tiny, twice)]
    digests = [{one.kind: one.weights_sha256 for one in run if isinstance(one, journal.Exported)} for run in runs]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("is_native", [True, False])
def test_precision_when_bf16_trains_and_says_where_this_is_slow(make_run, unpack, monkeypatch, is_native):
    monkeypatch.setattr(devices, "has_native_bf16", lambda _device: is_native)
    run = make_run(ROWS[:2], training_type=spec.Full())
    run.spec = msgspec.structs.replace(run.spec, device=spec.Device(kind="cpu", precision="bf16"))
    messages = run.train()
    assert messages[0].precision == "bf16"
    notices = [message.message for message in messages if isinstance(message, journal.Notice)]
    assert len(notices) == (0 if is_native else 1)
    assert all("set precision to auto" in notice for notice in notices)
    stored = load_file(unpack(run, _find_exported(messages, "model").archive) / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}  # as the base model is stored


def test_output_when_unpacked_holds_tokenizer_and_a_card_with_the_recipe(make_run, unpack, tiny):
    run = make_run(ROWS, validation=VALIDATION, n_evals=1)
    messages = run.train()
    for kind in ("adapter", "merged"):
        folder = unpack(run, _find_exported(messages, kind).archive)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            assert (folder / name).read_bytes() == (tiny / name).read_bytes()
        transformers.AutoTokenizer.from_pretrained(folder)
        _, front_matter, body = (folder / "README.md").read_text().split("---\n", 2)
        assert yaml.safe_load(front_matter)["base_model"] == "luthier/tiny"
        for fact in ("ab" * 32, "learning rate 0.001", f"{_list_losses(messages, 'eval')[0]:.4f}", "revision `r1`"):
            assert fact in body


def test_card_when_a_file_name_holds_markup_keeps_its_table(make_run, unpack):
    run = make_run(ROWS)
    recipe = msgspec.structs.replace(run.spec.recipe, training_file="a|b`c\n# d.jsonl", output_name='x: "y" #z')
    run.spec = msgspec.structs.replace(run.spec, recipe=recipe)
    card = (unpack(run, _find_exported(run.train(), "adapter").archive) / "README.md").read_text()
    assert "| Training file | a\\|b\\`c# d.jsonl, SHA-256" in card
    assert yaml.safe_load(card.split("---\n")[1])["model_name"] == 'x: "y" #z'


@pytest.mark.parametrize(
    ("origin", "loading"),
    [
        (
            {"fetched_from": "the package p 1, dequantised from 4 bits"},
            "# the weights that it was trained on: the package p 1",
        ),
        ({"fetched_from": "the Hugging Face hub, x/y at 01", "repository": "x/y"}, "# fetches x/y"),
    ],
)
def test_card_when_weights_came_from_somewhere_says_so_and_how_to_load_them(make_run, unpack, origin, loading):
    run = make_run(ROWS[:2], validation=VALIDATION, n_evals=1)
    base = msgspec.structs.replace(run.spec.base_model, **origin)
    recipe = msgspec.structs.replace(run.spec.recipe, validation_file="v.jsonl", validation_file_sha256="cd" * 32)
    run.spec = msgspec.structs.replace(run.spec, base_model=base, recipe=recipe)
    folder = unpack(run, _find_exported(run.train(), "adapter").archive)
    card = (folder / "README.md").read_text()
    assert f"| Base weights | {origin['fetched_from']} |" in card
    assert f"| Validation file | v.jsonl, SHA-256 `{'cd' * 32}` |" in card
    assert loading in card
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == origin.get("repository", "luthier/tiny")
    assert repr(config["lora_alpha"]) == "8"


def test_worker_package_imports_neither_transformers_nor_torchs_compiler():
    program = """
import sys, torch
import luthier.training.run
from luthier.training import devices, optimizer
devices.make_deterministic(1, 1)
parameter = torch.nn.Parameter(torch.ones(2))
adamw = optimizer.AdamW([parameter], weight_decay=0.0, max_grad_norm=1.0)
parameter.sum().backward()
adamw.step(0.1)
print(sorted({"transformers", "torch._dynamo", "torch._inductor", "peft"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_adapter_config_is_one_that_peft_reads_without_a_warning(make_run, unpack, recwarn):
    run = make_run(ROWS)
    folder = unpack(run, _find_exported(run.train(), "adapter").archive)
    config = peft.PeftConfig.from_pretrained(folder)
    assert (config.r, config.lora_alpha, config.bias) == (4, 8.0, "none")
    assert config.base_model_name_or_path == "luthier/tiny"
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == sorted(config.target_modules)
    assert not recwarn.list


def test_journal_when_a_step_or_an_evaluation_takes_long_tells_that_they_go_on(make_run, monkeypatch):
    monkeypatch.setattr(watch, "WORKING_EVERY_S", 0.0)
    monkeypatch.setitem(loop.BATCH_TOKENS, "cpu", 1)  # a row a batch
    messages = make_run(ROWS[:4], validation=VALIDATION, n_evals=1, batch_size=4, packing=False).train()
    names = [type(message).__name__ for message in messages]
    assert names[3:14] == ["Working"] * 4 + ["Metric", "EpochComplete"] + ["Working"] * 4 + ["Metric"]
    tokens = [message.tokens for message in messages if isinstance(message, journal.Working)]
    assert tokens[0] == tokens[4] == 0
    assert tokens[1] < tokens[2] < tokens[3]


def test_journal_when_steps_are_short_holds_no_signs_of_life(make_run):
    messages = make_run(ROWS, batch_size=1).train()
    assert not [message for message in messages if isinstance(message, journal.Working)]


class _StopsAfter(threading.Event):
    """Set once it was asked for so many times."""

    def __init__(self, asked):
        super().__init__()
        self.left = asked

    def is_set(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("asked", "steps"), [(3, 0), (4, 1), (8, 1), (9, 2)])
def test_job_when_told_to_stop_gives_the_step_up_at_its_next_batch(make_run, monkeypatch, asked, steps):
    monkeypatch.setitem(loop.BATCH_TOKENS, "cpu", 1)
    run = make_run(ROWS[:4], validation=VALIDATION[:1], n_evals=2, n_epochs=2, batch_size=4, packing=False)
    messages = run.train(_StopsAfter(asked))
    assert len(_list_losses(messages)) == steps
    assert messages[-1] == journal.Finished(at=messages[-1].at, step=steps, epochs_completed=steps, stopped=True)
    assert not (run.path / layout.OUTPUT_DIR).exists()


def test_job_when_told_to_stop_while_the_outputs_are_written_finishes(make_run):
    # One batch, and the question whether the outputs are wanted.
    messages = make_run(ROWS[:2], packing=False).train(_StopsAfter(2))
    assert [message.kind for message in messages if isinstance(message, journal.Exported)] == ["adapter", "merged"]
    assert not messages[-1].stopped
