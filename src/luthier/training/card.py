"""README.md of an output: what it is, how it was made, how to load it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from luthier.protocol.spec import BaseModel, Lora, TrainingSpec
from luthier.training.devices import get_versions


@dataclass(frozen=True)
class Results:
    """Where the job stands. ``tokens`` are those seen so far, every epoch counted; the losses are of this step."""

    total_steps: int
    precision: str
    tokens: int = 0
    train_loss: float = 0.0
    eval_loss: float | None = None


_LOAD_MODEL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""
_LOAD_ADAPTER_WITH_HUB = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")  # fetches {repository}
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""
_LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

# the weights that it was trained on: {fetched_from}
base = AutoModelForCausalLM.from_pretrained("path/to/the/base/model")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""
_KINDS = {
    "adapter": "a LoRA adapter of",
    "merged": "a fine-tuned version, its LoRA adapter merged into the weights, of",
    "model": "a fine-tuned version, every weight trained, of",
}


def write_card(spec: TrainingSpec, kind: Literal["adapter", "merged", "model"], step: int, results: Results) -> str:
    """Return the model card. The same run gives the same text: it holds no time of writing."""
    name, base = spec.recipe.output_name, spec.base_model.name
    loading = _describe_loading(spec.base_model) if kind == "adapter" else _LOAD_MODEL
    rows = "\n".join(f"| {label} | {value} |" for label, value in _list_facts(spec, step, results))
    return f"""\
---
{_write_front_matter(spec, kind)}
---

# {name}

This is {_KINDS[kind]} `{base}`, made by Luthier.

| | |
|---|---|
{rows}

## How to load it

```python
{loading}
```
"""


def _describe_loading(base: BaseModel) -> str:
    """Return how an adapter is loaded, which is of use with the weights that it was trained on only."""
    if base.repository is not None:
        return _LOAD_ADAPTER_WITH_HUB.format(repository=base.repository)
    return _LOAD_ADAPTER.format(fetched_from=base.fetched_from)


def _write_front_matter(spec: TrainingSpec, kind: str) -> str:
    """Return the hub's metadata as YAML; a JSON string is a YAML string, whatever a name holds."""
    library = "peft" if kind == "adapter" else "transformers"
    lines = [
        f"base_model: {json.dumps(spec.base_model.repository or spec.base_model.name)}",
        f"base_model_relation: {'adapter' if kind == 'adapter' else 'finetune'}",
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        f"model_name: {json.dumps(spec.recipe.output_name)}",
        "tags: [luthier, sft]",
    ]
    return "\n".join(lines)


def _list_facts(spec: TrainingSpec, step: int, results: Results) -> list[tuple[str, str]]:
    chosen, recipe = spec.hyperparameters, spec.recipe
    schedule = chosen.schedule
    facts: list[tuple[str, object]] = [
        ("Base model", f"{spec.base_model.name}, revision `{spec.base_model.revision}`"),
        ("Base weights", _escape(spec.base_model.fetched_from)),
        ("Training file", _describe_file(recipe.training_file, recipe.training_file_sha256)),
        ("Validation file", _describe_file(recipe.validation_file, recipe.validation_file_sha256)),
        ("Method", f"supervised fine-tuning, {_describe_training_type(spec)}"),
        ("Trained on inputs", chosen.train_on_inputs),
        ("Epochs", chosen.n_epochs),
        ("Steps", f"{step} of {results.total_steps}"),
        ("Tokens seen", f"{results.tokens:,}"),
        (
            "Batch",
            f"{chosen.batch_size} × {chosen.gradient_accumulation_steps} sequences of up to {chosen.max_seq_length} tokens",
        ),
        ("Packing", chosen.packing),
        ("Optimizer", f"AdamW, learning rate {chosen.learning_rate:g}, weight decay {chosen.weight_decay:g}"),
        (
            "Schedule",
            f"{schedule.kind}, warm-up {schedule.warmup_ratio:g}, floor {schedule.min_lr_ratio:g}, cycles {schedule.num_cycles:g}",
        ),
        ("Gradient clipping", f"norm {chosen.max_grad_norm:g}" if chosen.max_grad_norm else "off"),
        ("Seed", chosen.random_seed),
        ("Precision", results.precision),
        ("Training loss of the last step", f"{results.train_loss:.4f}"),
        ("Validation loss", "none" if results.eval_loss is None else f"{results.eval_loss:.4f}"),
        ("Job", f"{spec.job_id}, created {recipe.created_at}"),
        ("Versions", ", ".join(f"{name} {number}" for name, number in get_versions().items())),
    ]
    return [(label, str(value)) for label, value in facts]


def _describe_file(name: str | None, sha256: str | None) -> str:
    return "none" if name is None else f"{_escape(name)}, SHA-256 `{sha256}`"


def _describe_training_type(spec: TrainingSpec) -> str:
    lora = spec.hyperparameters.training_type
    if not isinstance(lora, Lora):
        return "every weight"
    modules = ", ".join(lora.target_modules)
    return f"LoRA r {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, modules {modules}"


def _escape(text: str) -> str:
    """Return text that stays inside its table cell."""
    return "".join(f"\\{char}" if char in r"\|`*_<>[]" else char for char in text if char.isprintable())
