"""The base model in memory: loaded, checked, and asked for losses alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from torch import Tensor

from luthier.protocol.spec import BaseModel
from luthier.training import devices
from luthier.training.architecture import Architecture, read_architecture
from luthier.training.batches import Batch
from luthier.training.decoder import OUTPUT_LAYER, Decoder, Weights
from luthier.training.devices import Place
from luthier.training.failures import BaseModelFault
from luthier.training.losses import sum_cross_entropy
from luthier.training.weights import Weight, read_folder

_BUFFERS = ".rotary_emb.inv_freq"  # older programs saved what follows from config.json


class Model:
    """A decoder that computes nothing but the losses it is asked for. ``param_count`` counts tied weights once."""

    def __init__(self, module: Decoder, place: Place) -> None:
        self.module = module
        self.place = place
        self.param_count = sum(parameter.numel() for parameter in module.parameters())

    def sum_losses(self, batch: Batch) -> Tensor:
        """Return the sum of the losses of a batch's targets, in fp32, with its graph when training."""
        hidden = self.module(batch.input_ids, batch.position_ids, batch.segments)
        return sum_cross_entropy(hidden[batch.positions], self.module.lm_head.weight, batch.targets)

    def count_trained(self) -> int:
        """Return how many parameters are trained."""
        return sum(parameter.numel() for parameter in self.module.parameters() if parameter.requires_grad)


def load_model(base: BaseModel, place: Place, *, trains_all: bool) -> Model:
    """Load the weights in the type that computes; ``trains_all`` tells that every one is going to be trained.

    Raises BaseModelFault when they are not whole or not known, MemoryTooSmall before any is loaded.
    """
    folder = Path(base.path)
    try:
        architecture = read_architecture(folder)
        with read_folder(folder) as found:
            stored = _drop_unread(found, architecture)
            devices.require_memory(place, sum(weight.param_count for weight in stored.values()), trains_all=trains_all)
            module = _build(architecture, Weights(_load_tensors(stored, place)))
    except KeyError as error:
        raise _refuse(base, f"a weight is missing: {error.args[0]}") from error
    except msgspec.MsgspecError as error:
        raise _refuse(base, f"config.json: {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise _refuse(base, str(error)) from error
    return Model(module, place)


def _build(architecture: Architecture, weights: Weights) -> Decoder:
    module = Decoder(architecture, weights)
    if left_over := weights.list_left_over():
        raise ValueError(f"a weight has no place in the model: {left_over[0]}")
    return module


def _drop_unread(stored: Mapping[str, Weight], architecture: Architecture) -> dict[str, Weight]:
    return {
        name: weight
        for name, weight in stored.items()
        if not name.endswith(_BUFFERS) and not (architecture.tie_word_embeddings and name == OUTPUT_LAYER)
    }


def _load_tensors(stored: Mapping[str, Weight], place: Place) -> dict[str, Tensor]:
    return {name: weight.compute().to(place.device, place.dtype) for name, weight in stored.items()}


def _refuse(base: BaseModel, reason: str) -> BaseModelFault:
    return BaseModelFault(
        f"the base model {base.name} cannot be loaded: {reason}",
        "delete its folder and restart the server, which has it fetched again; or use another base model",
    )
