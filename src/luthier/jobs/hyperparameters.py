"""From a request and a model's limits to resolved hyper-parameters: defaults filled in, every rule checked. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from luthier.catalog.limits import Limits
from luthier.jobs.problems import Problems, show
from luthier.jobs.request import JobRequest
from luthier.protocol.spec import Full, Hyperparameters, Lora, Schedule

DEFAULT_LEARNING_RATE: Final = 1e-5
DEFAULT_SEED: Final = 42
MAX_SEED: Final = 2**32 - 1  # what every generator that is seeded with it takes
MAX_GRADIENT_ACCUMULATION: Final = 1024  # a step must end some time: cancelling waits for it
MAX_LORA_ALPHA: Final = 65_536  # the scale alpha / r stays far from where bf16 has no digits left
# Beyond these a run cannot end well: weights that are no numbers, a rate that is noise.
MAX_GRAD_NORM: Final = 1e6
MAX_WEIGHT_DECAY: Final = 1.0
MAX_NUM_CYCLES: Final = 1000.0
MAX_SUFFIX_LENGTH: Final = 64
ALL_LINEAR: Final = "all-linear"

_SUFFIX = re.compile(r"[A-Za-z0-9._-]+")

# What the wire knows and this server does not offer: field → what to leave out, or do instead.
_NOT_OFFERED: Final = {
    "from_checkpoint": ("starting from a checkpoint", "leave from_checkpoint out and name a base model in model"),
    "from_hf_model": ("starting from a model on the Hugging Face hub", "leave from_hf_model out; an operator can add the model: luthier models add"),
    "hf_model_revision": ("starting from a model on the Hugging Face hub", "leave hf_model_revision out"),
    "hf_api_token": ("reading from or writing to the Hugging Face hub", "leave hf_api_token out"),
    "hf_output_repo_name": ("uploading the result to the Hugging Face hub", "leave hf_output_repo_name out and download the result"),
    "wandb_key": ("Weights & Biases", "leave the W&B key out (unset WANDB_API_KEY); metrics are kept by this server"),
    "wandb_api_key": ("Weights & Biases", "leave the W&B key out (unset WANDB_API_KEY); metrics are kept by this server"),
    "wandb_base_url": ("Weights & Biases", "leave wandb_base_url out"),
    "wandb_project_name": ("Weights & Biases", "leave wandb_project_name out"),
    "wandb_name": ("Weights & Biases", "leave wandb_name out"),
    "wandb_entity": ("Weights & Biases", "leave wandb_entity out"),
    "early_stopping_enabled": ("early stopping", "leave the early_stopping fields out"),
    "early_stopping_patience": ("early stopping", "leave the early_stopping fields out"),
    "early_stopping_min_delta": ("early stopping", "leave the early_stopping fields out"),
    "early_stopping_warmup_evals": ("early stopping", "leave the early_stopping fields out"),
}  # fmt: skip


def resolve(request: JobRequest, limits: Limits) -> Hyperparameters:
    """Fill in every default and check every rule. Raises one InvalidRequest that tells all problems in ``details``."""
    problems = Problems()
    _refuse_what_is_not_offered(problems, request)
    _require_text(problems, "training_file", request.training_file)
    _check_suffix(problems, request.suffix)
    training_type = _resolve_training_type(problems, request.training_type, limits)
    max_seq_length = problems.read_int(
        "max_seq_length",
        request.max_seq_length,
        default=limits.max_seq_length_sft,
        low=limits.min_max_seq_length,
        high=limits.max_seq_length_sft,
    )
    hyperparameters = Hyperparameters(
        n_epochs=problems.read_int("n_epochs", request.n_epochs, default=1, low=1, high=limits.max_num_epochs),
        n_checkpoints=problems.read_int(
            "n_checkpoints", request.n_checkpoints, default=1, low=1, high=limits.max_num_checkpoints
        ),
        n_evals=_resolve_n_evals(problems, request, limits),
        batch_size=_resolve_batch_size(problems, request.batch_size, training_type, max_seq_length, limits),
        gradient_accumulation_steps=_resolve_accumulation(problems, request.gradient_accumulation_steps, limits),
        learning_rate=problems.read_float(
            "learning_rate",
            request.learning_rate,
            default=DEFAULT_LEARNING_RATE,
            low=limits.min_learning_rate,
            high=limits.max_learning_rate,
        ),
        schedule=_resolve_schedule(problems, request),
        max_grad_norm=problems.read_float(
            "max_grad_norm", request.max_grad_norm, default=1.0, low=0.0, high=MAX_GRAD_NORM
        ),
        weight_decay=problems.read_float(
            "weight_decay", request.weight_decay, default=0.0, low=0.0, high=MAX_WEIGHT_DECAY
        ),
        random_seed=problems.read_int("random_seed", request.random_seed, default=DEFAULT_SEED, low=0, high=MAX_SEED),
        packing=problems.read_bool("packing", request.packing, default=True),
        max_seq_length=max_seq_length,
        training_type=training_type,
        train_on_inputs=_resolve_train_on_inputs(problems, request.training_method),
    )
    problems.require_none()
    return hyperparameters


def _refuse_what_is_not_offered(problems: Problems, request: JobRequest) -> None:
    told = set()
    for param, (feature, way_out) in _NOT_OFFERED.items():
        value = getattr(request, param)
        # The clients send empty strings and false for what was not asked for.
        if value in (None, "", False) or feature in told:
            continue
        told.add(feature)
        problems.add(param, f"{param}: this server does not offer {feature} yet", hint=way_out)
    vision = problems.read_object("multimodal_params", request.multimodal_params).get("train_vision")
    if vision not in (None, False):
        problems.add(
            "multimodal_params.train_vision",
            "multimodal_params.train_vision: this server does not offer training on images yet",
            hint="leave train_vision out",
        )


def _require_text(problems: Problems, param: str, value: object) -> None:
    if value is None or value == "":
        problems.add(param, f"{param} is required", hint="upload a file and give its id")
    else:
        problems.read_text(param, value)


def _check_suffix(problems: Problems, value: object) -> None:
    suffix = problems.read_text("suffix", value)
    if suffix is None:
        return
    if len(suffix) > MAX_SUFFIX_LENGTH:
        problems.add(
            "suffix", f"suffix must have at most {MAX_SUFFIX_LENGTH} characters: {show(suffix)} has {len(suffix)}"
        )
    elif not _SUFFIX.fullmatch(suffix):
        problems.add(
            "suffix",
            f"suffix may hold letters, digits, '.', '_' and '-' only: {show(suffix)}",
            hint="the suffix becomes part of the output model's name",
        )


def _resolve_training_type(problems: Problems, value: object, limits: Limits) -> Lora | Full:
    fields = problems.read_object("training_type", value)
    kind = problems.read_choice("training_type.type", fields.get("type"), choices=("Lora", "Full"), default="Lora")
    if kind == "Full":
        return _resolve_full(problems, fields, limits)
    lora = limits.lora_training
    rank = problems.read_int(
        "training_type.lora_r", fields.get("lora_r"), default=lora.default_rank, low=1, high=lora.max_rank
    )
    alpha = problems.read_int(
        "training_type.lora_alpha", fields.get("lora_alpha"), default=2 * rank, low=1, high=MAX_LORA_ALPHA
    )
    dropout = problems.read_float(
        "training_type.lora_dropout", fields.get("lora_dropout"), default=0.0, low=0.0, high=1.0, open_high=True
    )
    modules = _resolve_modules(problems, fields.get("lora_trainable_modules"), lora.target_modules)
    return Lora(r=rank, alpha=float(alpha), dropout=dropout, target_modules=modules)


def _resolve_full(problems: Problems, fields: Mapping[str, object], limits: Limits) -> Full:
    if limits.full_training is None:
        problems.add(
            "training_type.type",
            f"training_type.type: {limits.model_name} is too large for full training here",
            hint='use {"type": "Lora"}, or a smaller base model',
        )
    for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_trainable_modules"):
        if fields.get(name) is not None:
            param = f"training_type.{name}"
            problems.add(param, f"{param} has no meaning with type Full", hint=f"leave {name} out, or use type Lora")
    return Full()


def _resolve_modules(problems: Problems, value: object, available: tuple[str, ...]) -> tuple[str, ...]:
    param = "training_type.lora_trainable_modules"
    text = problems.read_text(param, value)
    if text is None:
        return (ALL_LINEAR,)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names == (ALL_LINEAR,):
        return names
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        problems.add(
            param,
            f"{param} names what this model does not have: {show(', '.join(unknown))}",
            hint=f"use {ALL_LINEAR}, or a comma-separated list of: {', '.join(available)}",
        )
        return (ALL_LINEAR,)
    return names


def _resolve_n_evals(problems: Problems, request: JobRequest, limits: Limits) -> int:
    n_evals = problems.read_int("n_evals", request.n_evals, default=0, low=0, high=limits.max_num_evals)
    validation_file = problems.read_text("validation_file", request.validation_file)
    if n_evals and validation_file is None:
        problems.add(
            "n_evals",
            f"n_evals needs a validation_file: {n_evals}",
            hint="upload a validation file and give its id as validation_file, or leave n_evals out",
        )
    return n_evals


def _resolve_batch_size(
    problems: Problems, value: object, training_type: Lora | Full, max_seq_length: int, limits: Limits
) -> int:
    largest = limits.resolve_max_batch(max_seq_length)
    if value == "max":
        return largest
    own = limits.full_training if isinstance(training_type, Full) and limits.full_training else limits.lora_training
    if isinstance(value, str):
        problems.add(
            "batch_size",
            f'batch_size must be "max" or a whole number from {own.min_batch_size} to {own.max_batch_size}: {show(value)}',
        )
        return largest
    return problems.read_int("batch_size", value, default=largest, low=own.min_batch_size, high=own.max_batch_size)


def _resolve_accumulation(problems: Problems, value: object, limits: Limits) -> int:
    default = limits.default_gradient_accumulation_steps
    steps = problems.read_int(
        "gradient_accumulation_steps", value, default=default, low=0, high=MAX_GRADIENT_ACCUMULATION
    )
    return steps or default  # the wire's 0 asks for the model's default


def _resolve_schedule(problems: Problems, request: JobRequest) -> Schedule:
    fields = problems.read_object("lr_scheduler", request.lr_scheduler)
    kind: Literal["cosine", "linear"] = "cosine"
    if (
        problems.read_choice(
            "lr_scheduler.lr_scheduler_type",
            fields.get("lr_scheduler_type"),
            choices=("cosine", "linear"),
            default="cosine",
        )
        == "linear"
    ):
        kind = "linear"
    args_param = "lr_scheduler.lr_scheduler_args"
    args = problems.read_object(args_param, fields.get("lr_scheduler_args"))
    cycles_param = f"{args_param}.num_cycles"
    num_cycles = problems.read_float(
        cycles_param, args.get("num_cycles"), default=0.5, low=0.0, high=MAX_NUM_CYCLES, open_low=True
    )
    if kind == "linear" and args.get("num_cycles") is not None:
        problems.add(
            cycles_param,
            f"{cycles_param} has no meaning for a linear schedule: {show(args['num_cycles'])}",
            hint="leave num_cycles out, or use lr_scheduler_type cosine",
        )
    return Schedule(
        kind=kind,
        min_lr_ratio=problems.read_float(
            f"{args_param}.min_lr_ratio", args.get("min_lr_ratio"), default=0.0, low=0.0, high=1.0
        ),
        num_cycles=num_cycles,
        warmup_ratio=problems.read_float("warmup_ratio", request.warmup_ratio, default=0.0, low=0.0, high=1.0),
    )


def _resolve_train_on_inputs(problems: Problems, value: object) -> bool | Literal["auto"]:
    fields = problems.read_object("training_method", value)
    method = problems.read_choice("training_method.method", fields.get("method"), choices=("sft", "dpo"), default="sft")
    if method == "dpo":
        problems.add(
            "training_method.method",
            "training_method.method: this server does not offer DPO yet",
            hint='use {"method": "sft"}, or leave training_method out',
        )
        return "auto"
    for name in ("dpo_beta", "dpo_normalize_logratios_by_length", "dpo_reference_free", "rpo_alpha", "simpo_gamma"):
        if fields.get(name) not in (None, False, 0):
            param = f"training_method.{name}"
            problems.add(param, f"{param} has no meaning with method sft", hint=f"leave {name} out")
    train_on_inputs = fields.get("train_on_inputs")
    if train_on_inputs is None or train_on_inputs == "auto":
        return "auto"
    if not isinstance(train_on_inputs, bool):
        param = "training_method.train_on_inputs"
        problems.add(param, f'{param} must be "auto", true or false: {show(train_on_inputs)}')
        return "auto"
    return train_on_inputs
