"""A job's hyper-parameters under the names in which they are asked for, so that an answer can be sent again as it is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from luthier.protocol import spec


class SchedulerArgs(BaseModel):
    """The learning rate's fall; ``num_cycles`` for cosine only."""

    min_lr_ratio: float
    num_cycles: float | None = None


class Scheduler(BaseModel):
    """The learning rate over the steps."""

    lr_scheduler_type: Literal["cosine", "linear"]
    lr_scheduler_args: SchedulerArgs


class TrainingType(BaseModel):
    """Which weights are trained. The other fields are there for LoRA only."""

    type: Literal["Lora", "Full"]
    lora_r: int | None = None
    lora_alpha: int | float | None = None
    lora_dropout: float | None = None
    lora_trainable_modules: str | None = None


class TrainingMethod(BaseModel):
    """What is optimised."""

    method: Literal["sft"] = "sft"
    train_on_inputs: bool | Literal["auto"]


class Hyperparameters(BaseModel):
    """Every choice of a job, defaults filled in."""

    n_epochs: int
    n_checkpoints: int
    n_evals: int
    batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    lr_scheduler: Scheduler
    warmup_ratio: float
    max_grad_norm: float
    weight_decay: float
    random_seed: int
    packing: bool
    max_seq_length: int
    training_type: TrainingType
    training_method: TrainingMethod
    train_on_inputs: bool | Literal["auto"]


def describe(chosen: spec.Hyperparameters) -> dict[str, Any]:
    """Return hyper-parameters as the fields of ``Hyperparameters``, with nothing that has no meaning for them."""
    plain = ("n_epochs", "n_checkpoints", "n_evals", "batch_size", "gradient_accumulation_steps", "learning_rate",
             "max_grad_norm", "weight_decay", "random_seed", "packing", "max_seq_length", "train_on_inputs")  # fmt: skip
    return {
        **{name: getattr(chosen, name) for name in plain},
        "warmup_ratio": chosen.schedule.warmup_ratio,
        "lr_scheduler": _describe_schedule(chosen.schedule),
        "training_type": _describe_training_type(chosen.training_type),
        "training_method": {"method": "sft", "train_on_inputs": chosen.train_on_inputs},
    }


def _describe_schedule(schedule: spec.Schedule) -> dict[str, Any]:
    arguments = {"min_lr_ratio": schedule.min_lr_ratio}
    if schedule.kind == "cosine":
        arguments["num_cycles"] = schedule.num_cycles
    return {"lr_scheduler_type": schedule.kind, "lr_scheduler_args": arguments}


def _describe_training_type(chosen: spec.Lora | spec.Full) -> dict[str, Any]:
    if isinstance(chosen, spec.Full):
        return {"type": "Full"}
    return {
        "type": "Lora",
        "lora_r": chosen.r,
        "lora_alpha": int(chosen.alpha) if chosen.alpha == int(chosen.alpha) else chosen.alpha,
        "lora_dropout": chosen.dropout,
        "lora_trainable_modules": ",".join(chosen.target_modules),
    }
