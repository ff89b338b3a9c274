"""A request for a job, as the caller wrote it: JSON values under the wire's names, not judged yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self

_LEAF: Final[Mapping[str, Any]] = {}
# Objects of the wire, with the parts that they may have; a part may be an object in turn.
_PARTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "training_type": {
        "type": _LEAF,
        "lora_r": _LEAF,
        "lora_alpha": _LEAF,
        "lora_dropout": _LEAF,
        "lora_trainable_modules": _LEAF,
    },
    "training_method": {
        "method": _LEAF,
        "train_on_inputs": _LEAF,
        "dpo_beta": _LEAF,
        "dpo_normalize_logratios_by_length": _LEAF,
        "dpo_reference_free": _LEAF,
        "rpo_alpha": _LEAF,
        "simpo_gamma": _LEAF,
    },
    "lr_scheduler": {
        "lr_scheduler_type": _LEAF,
        "lr_scheduler_args": {"min_lr_ratio": _LEAF, "num_cycles": _LEAF},
    },
    "multimodal_params": {"train_vision": _LEAF},
}
_SECRETS = {"wandb_key", "wandb_api_key", "hf_api_token"}
_UNKNOWN_SHOWN = 20  # names; a body may hold as many as it likes
_NAME_SHOWN = 64  # characters of a name


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """Every field of a create. None is a field that was not sent, or sent as null.

    Values are JSON as it came: ``hyperparameters.resolve`` judges types and ranges, and tells every
    problem at once. ``unknown_fields`` are dotted names that this server does not know.
    """

    model: object = None
    training_file: object = None
    validation_file: object = None
    suffix: object = None
    n_epochs: object = None
    n_checkpoints: object = None
    n_evals: object = None
    batch_size: object = None
    gradient_accumulation_steps: object = None
    learning_rate: object = None
    lr_scheduler: object = None
    warmup_ratio: object = None
    max_grad_norm: object = None
    weight_decay: object = None
    random_seed: object = None
    packing: object = None
    max_seq_length: object = None
    training_type: object = None
    training_method: object = None
    multimodal_params: object = None
    early_stopping_enabled: object = None
    early_stopping_patience: object = None
    early_stopping_min_delta: object = None
    early_stopping_warmup_evals: object = None
    from_checkpoint: object = None
    from_hf_model: object = None
    hf_model_revision: object = None
    hf_api_token: object = None
    hf_output_repo_name: object = None
    wandb_key: object = None
    wandb_api_key: object = None
    wandb_base_url: object = None
    wandb_project_name: object = None
    wandb_name: object = None
    wandb_entity: object = None
    unknown_fields: tuple[str, ...] = ()

    @classmethod
    def from_body(cls, body: Mapping[str, object]) -> Self:
        """Take the known fields out of a JSON body, and name the others."""
        names = [field.name for field in fields(cls) if field.name != "unknown_fields"]
        taken, unknown = _take(body, {name: _PARTS.get(name, _LEAF) for name in names}, prefix="")
        return cls(**taken, unknown_fields=tuple(sorted(unknown)))

    def describe_unknown(self) -> str:
        """Write the names of the unknown fields, harmless on a terminal and bounded."""
        shown = [json.dumps(name[:_NAME_SHOWN])[1:-1] for name in self.unknown_fields[:_UNKNOWN_SHOWN]]
        more = len(self.unknown_fields) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")

    def list_sent(self) -> dict[str, object]:
        """Return the fields that were sent, secrets replaced: what may be kept and shown."""
        sent = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "unknown_fields"}
        return {name: "…" if name in _SECRETS and value else value for name, value in sent.items() if value is not None}

    def keep_priced_fields(self) -> Self:
        """Return a request with the fields that a price depends on, the rest as if it had not been sent.

        The clients fill what they think does not matter with numbers that need not be allowed (a LoRA rank
        of 16 for every model), so an estimate must not judge them.
        """
        training_type = self.training_type
        if isinstance(training_type, Mapping):
            training_type = {"type": training_type.get("type")}
        return replace(
            type(self)(),
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            n_epochs=self.n_epochs,
            n_evals=self.n_evals,
            batch_size=self.batch_size,  # decides the steps, and a job is evaluated at most once a step
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            packing=self.packing,
            max_seq_length=self.max_seq_length,
            training_type=training_type,
            training_method=self.training_method,
            from_checkpoint=self.from_checkpoint,
            from_hf_model=self.from_hf_model,
        )


def _take(
    body: Mapping[str, object], known: Mapping[str, Mapping[str, Any]], *, prefix: str
) -> tuple[dict[str, Any], list[str]]:
    """Split an object into the fields that are known, and the dotted names of those that are not, at any depth."""
    taken: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in body.items():
        if name not in known:
            unknown.append(prefix + name)
        elif known[name] and isinstance(value, Mapping):
            taken[name], inner = _take(value, known[name], prefix=f"{prefix}{name}.")
            unknown += inner
        else:
            taken[name] = value
    return taken, unknown
