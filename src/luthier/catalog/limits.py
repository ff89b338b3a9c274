"""What a job may ask of a base model. Pure: derived from the model's facts alone, so known before the weights are here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from luthier.catalog.facts import Facts
from luthier.errors import Conflict

if TYPE_CHECKING:
    from luthier.catalog.service import ModelView

# Epochs, learning rate and evaluations: the published rules of the API that we speak.
MAX_EPOCHS = 20
MIN_LEARNING_RATE = 1e-8
MAX_LEARNING_RATE = 0.01
MAX_EVALS = 100

# One checkpoint for each of the most epochs; each is an archive that is kept.
MAX_CHECKPOINTS = 20

# Rank 8 on every linear layer is the usual start. At 64 an adapter of the 135M model holds 19.5M parameters,
# a seventh of the model: beyond that, full training is the better tool.
DEFAULT_LORA_RANK = 8
MAX_LORA_RANK = 64

# A longer sequence is a rarity in conversations, and attention on one device grows with its square.
MAX_SEQ_LENGTH = 8192
# Below it, a chat template alone fills the sequence.
MIN_SEQ_LENGTH = 32

# Sequences in one optimizer step. The trainer goes through them a few at a time, so the limit bounds
# the time until a step, a metric or a cancellation, not memory.
MIN_BATCH_SIZE = 1
MAX_BATCH_SIZE = 128
# batch_size "max" fills a step with this many tokens: dozens of short conversations to average over, and
# still several steps an epoch on the small data sets that fine-tuning is for.
MAX_BATCH_TOKENS = 8192

# A single device holds weights, gradients and two moments in fp32: 16 bytes a parameter. 4e9 of them are
# 64 GB, the most that an 80 GB accelerator takes beside the activations.
MAX_FULL_TRAINING_PARAMS = 4_000_000_000


class LoraLimits(msgspec.Struct, frozen=True):
    """Limits of LoRA training."""

    default_rank: int
    max_rank: int
    min_batch_size: int
    max_batch_size: int
    max_batch_size_dpo: int
    target_modules: tuple[str, ...]


class FullLimits(msgspec.Struct, frozen=True):
    """Limits of full training."""

    min_batch_size: int
    max_batch_size: int
    max_batch_size_dpo: int


class Limits(msgspec.Struct, frozen=True):
    """Every field of the clients' ``FinetuneModelLimits``. ``full_training`` is None where it is not supported."""

    model_name: str
    max_num_epochs: int
    max_num_evals: int
    max_num_checkpoints: int
    min_learning_rate: float
    max_learning_rate: float
    min_max_seq_length: int
    max_seq_length_sft: int
    max_seq_length_dpo: int
    default_gradient_accumulation_steps: int
    merge_output_lora: bool
    supports_full_training: bool
    supports_tools: bool
    supports_reasoning: bool
    supports_vision: bool
    lora_training: LoraLimits
    full_training: FullLimits | None

    def resolve_max_batch(self, max_seq_length: int) -> int:
        """Return what ``batch_size: "max"`` stands for when sequences are up to ``max_seq_length`` tokens long."""
        fitting = MAX_BATCH_TOKENS // max_seq_length
        return min(max(fitting, self.lora_training.min_batch_size), self.lora_training.max_batch_size)


def derive_limits(name: str, facts: Facts) -> Limits:
    """Return the limits of a model with these facts."""
    max_seq_length = min(facts.context_length, MAX_SEQ_LENGTH)
    max_batch_size_dpo = MAX_BATCH_SIZE // 2  # a pair is two sequences
    supports_full_training = facts.param_count <= MAX_FULL_TRAINING_PARAMS
    return Limits(
        model_name=name,
        max_num_epochs=MAX_EPOCHS,
        max_num_evals=MAX_EVALS,
        max_num_checkpoints=MAX_CHECKPOINTS,
        min_learning_rate=MIN_LEARNING_RATE,
        max_learning_rate=MAX_LEARNING_RATE,
        min_max_seq_length=min(MIN_SEQ_LENGTH, max_seq_length),
        max_seq_length_sft=max_seq_length,
        max_seq_length_dpo=max_seq_length // 2,  # both sides of a pair are in memory at once
        default_gradient_accumulation_steps=1,
        merge_output_lora=True,
        supports_full_training=supports_full_training,
        supports_tools=facts.supports_tools,
        supports_reasoning=facts.supports_reasoning,
        supports_vision=False,
        lora_training=LoraLimits(
            default_rank=DEFAULT_LORA_RANK,
            max_rank=MAX_LORA_RANK,
            min_batch_size=MIN_BATCH_SIZE,
            max_batch_size=MAX_BATCH_SIZE,
            max_batch_size_dpo=max_batch_size_dpo,
            target_modules=facts.linear_modules,
        ),
        full_training=FullLimits(
            min_batch_size=MIN_BATCH_SIZE, max_batch_size=MAX_BATCH_SIZE, max_batch_size_dpo=max_batch_size_dpo
        )
        if supports_full_training
        else None,
    )


def get_limits(model: ModelView) -> Limits:
    """Return a model's limits. Raises Conflict while its facts are not known: it was never fetched."""
    if model.limits is None:
        raise Conflict(
            "model_not_ready",
            f"the limits of {model.name} are not known yet: it is {model.status}",
            hint=model.error or "try again once the model has been fetched",
            param="model",
        )
    return model.limits
