"""Every supported architecture, as transformers itself writes it."""

from __future__ import annotations

import shutil

import pytest

from luthier.catalog import folders
from luthier.catalog.config import ARCHITECTURES

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.mark.training
@pytest.mark.parametrize("ties_embeddings", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_check_when_transformers_wrote_the_folder_counts_the_same_parameters(
    tiny, tmp_path, architecture, ties_embeddings
):
    import transformers

    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    model = getattr(transformers, architecture)(config_class(**SIZES, tie_word_embeddings=ties_embeddings))
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path)
    facts = folders.check_folder(tmp_path)
    assert facts.param_count == sum(parameter.numel() for parameter in model.parameters())
    assert (facts.architecture, facts.context_length, facts.kv_head_count) == (architecture, 128, 2)
    linears = {name.rpartition(".")[2] for name, part in model.model.named_modules() if hasattr(part, "in_features")}
    assert set(facts.linear_modules) == linears


@pytest.mark.training
def test_check_when_llama_has_biases_counts_them(tiny, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True))
    model.save_pretrained(tmp_path)
    shutil.copy(tiny / "tokenizer.json", tmp_path)
    facts = folders.check_folder(tmp_path)
    assert facts.param_count == sum(parameter.numel() for parameter in model.parameters())
