"""The base model in memory: loaded, checked, and asked for losses alone."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import logging as transformers_logging

from luthier.protocol.spec import BaseModel
from luthier.training import attention
from luthier.training.batches import Batch
from luthier.training.devices import Place
from luthier.training.failures import BaseModelFault
from luthier.training.losses import sum_cross_entropy

# Beyond this many tokens at once a block keeps its input only and computes the rest again in the backward pass: a
# token of a 135M model holds about 4 MB of activations in fp32, and a row of 8,192 tokens would hold 32 GB.
RECOMPUTE_BEYOND_TOKENS = 1024


class Model:
    """A causal language model that computes nothing but the hidden states and the losses that are asked for."""

    def __init__(self, module: Any, place: Place) -> None:
        self.module = module
        self.place = place
        module.activation_checkpointing_enable({"use_reentrant": False})
        self._blocks: list[Any] = [
            block for block in module.modules() if getattr(block, "gradient_checkpointing", False) is True
        ]

    def sum_losses(self, batch: Batch) -> Tensor:
        """Return the sum of the losses of a batch's targets, in fp32, with its graph when training."""
        recomputes = batch.input_ids.shape[1] > RECOMPUTE_BEYOND_TOKENS
        for block in self._blocks:
            block.gradient_checkpointing = recomputes
        hidden = self.module.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, segments=batch.segments
        ).last_hidden_state[0]
        return sum_cross_entropy(hidden[batch.positions], self.module.lm_head.weight, batch.targets)

    def count_parameters(self) -> tuple[int, int]:
        """Return all parameters of the base model, tied ones once, and those that are trained."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.module.parameters()]
        trained = sum(size for size, is_trained in sizes if is_trained)
        return sum(size for size, _ in sizes), trained


def load_model(base: BaseModel, place: Place) -> Model:
    """Load the weights in the type that computes. Raises BaseModelFault when they are not whole or not known."""
    folder = Path(base.path)
    hint = f"have the weights fetched again: luthier models fetch {base.name}"
    try:
        config = json.loads((folder / "config.json").read_bytes())
        module, report = _find_class(config).from_pretrained(
            folder,
            dtype=place.dtype,
            attn_implementation=attention.NAME,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BaseModelFault(f"the weights of {base.name} cannot be loaded: {error}", hint) from error
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report[kind]:
            first = min(str(key) for key in report[kind])
            raise BaseModelFault(f"the weights of {base.name} do not fit its config: {kind}: {first}", hint)
    return Model(module.to(place.device), place)


def _find_class(config: dict[str, Any]) -> Any:
    """Return the transformers class that the config names, from its own module: the registry of all is slow to import.

    Code that comes with weights is never run.
    """
    transformers_logging.disable_progress_bar()
    name, architecture = config["model_type"], config["architectures"][0]
    try:
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        return getattr(module, architecture)
    except (ImportError, AttributeError) as error:
        message = f"this server's transformers has no architecture of this name: {architecture} ({name})"
        raise BaseModelFault(message, "use a base model of another family, or update transformers") from error
