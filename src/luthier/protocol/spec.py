"""TrainingSpec: everything a worker needs to know, frozen, versioned, with nothing secret in it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

VERSION = 1


class Lora(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="Lora", tag_field="type"):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) beside frozen weights."""

    r: int
    alpha: float
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("all-linear",)  # module names by their last part, or "all-linear"


class Full(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="Full", tag_field="type"):
    """Every weight is trained."""


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Learning rate over the steps: linear warm-up, then cosine or linear decay.

    ``num_cycles`` (cosine only): 0.5 is one fall from peak to the floor. The floor is
    ``min_lr_ratio`` × peak.
    """

    kind: Literal["cosine", "linear"] = "cosine"
    min_lr_ratio: float = 0.0
    num_cycles: float = 0.5
    warmup_ratio: float = 0.0


class Hyperparameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Resolved: every default is filled in, every limit was checked.

    ``batch_size`` counts sequences of up to ``max_seq_length`` tokens (packs when packing); one
    optimizer step consumes ``batch_size × gradient_accumulation_steps`` of them.
    """

    n_epochs: int
    n_checkpoints: int
    n_evals: int
    batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    schedule: Schedule
    max_grad_norm: float  # 0 switches clipping off
    weight_decay: float
    random_seed: int
    packing: bool
    max_seq_length: int
    training_type: Lora | Full
    train_on_inputs: bool | Literal["auto"]


class BaseModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The weights to start from: a local folder in the Hugging Face layout (safetensors).

    The last two are for the model card: where the weights came from, in words, and the repository on the Hugging Face
    hub that has the very same ones.
    """

    name: str
    revision: str  # identity of the weights, from the catalog
    path: str  # absolute
    fetched_from: str = "a folder"
    repository: str | None = None


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where and how to compute; ``threads`` are CPU threads."""

    kind: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = 1


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Facts for the model card; the trainer does not act on them."""

    output_name: str
    training_file: str
    training_file_sha256: str
    validation_file: str | None = None
    validation_file_sha256: str | None = None
    created_at: str = ""


class TrainingSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One job, as the worker sees it. Paths inside the run directory are fixed in ``layout``."""

    version: int
    job_id: str
    base_model: BaseModel
    hyperparameters: Hyperparameters
    device: Device
    recipe: Recipe
    lease_s: float  # the worker ends itself when its lease file was not renewed for this long


class SpecError(Exception):
    """The spec cannot be read by this version of the worker."""


def write_spec(path: Path, spec: TrainingSpec) -> None:
    """Write the spec as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")


def read_spec(path: Path) -> TrainingSpec:
    """Read and check a spec. Raises SpecError naming the field at fault, or another version."""
    try:
        spec = msgspec.json.decode(path.read_bytes(), type=TrainingSpec)
    except (OSError, msgspec.MsgspecError) as error:
        msg = f"cannot read {path}: {error}"
        raise SpecError(msg) from error
    if spec.version != VERSION:
        msg = f"{path} has version {spec.version}; this worker reads version {VERSION}"
        raise SpecError(msg)
    return spec
