from __future__ import annotations

import msgspec
import pytest

from luthier.catalog.builtin_models import FACTS, SMOLLM2, TINY
from luthier.catalog.limits import derive_limits


def test_limits_when_context_is_long_stop_at_what_one_device_trains():
    facts = msgspec.structs.replace(FACTS[TINY], context_length=131_072)
    limits = derive_limits("acme/long", facts)
    assert (limits.max_seq_length_sft, limits.max_seq_length_dpo) == (8192, 4096)


def test_limits_when_context_is_short_stay_below_it():
    limits = derive_limits("acme/short", msgspec.structs.replace(FACTS[TINY], context_length=16))
    assert limits.min_max_seq_length <= limits.max_seq_length_sft == 16


@pytest.mark.parametrize(("param_count", "is_offered"), [(4_000_000_000, True), (8_000_000_000, False)])
def test_limits_when_model_is_large_offer_lora_only(param_count, is_offered):
    limits = derive_limits("acme/model", msgspec.structs.replace(FACTS[TINY], param_count=param_count))
    assert limits.supports_full_training is is_offered
    assert (limits.full_training is not None) is is_offered
    assert limits.lora_training.max_rank >= limits.lora_training.default_rank


def test_limits_name_every_linear_layer_for_lora():
    assert set(derive_limits(SMOLLM2, FACTS[SMOLLM2]).lora_training.target_modules) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


@pytest.mark.parametrize(("max_seq_length", "batch"), [(32, 128), (512, 16), (2048, 4), (8192, 1)])
def test_resolve_max_batch_fills_a_step_with_tokens(max_seq_length, batch):
    assert derive_limits(SMOLLM2, FACTS[SMOLLM2]).resolve_max_batch(max_seq_length) == batch
