from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from luthier.catalog import folders
from luthier.catalog.builtin_models import FACTS, TINY
from luthier.catalog.fetch import build_tiny


def test_tiny_when_built_has_the_same_numbers_on_every_machine(tiny):
    numbers = hashlib.sha256()
    for name, array in sorted(load_file(tiny / "model.safetensors").items()):
        numbers.update(name.encode() + array.tobytes())
    assert numbers.hexdigest() == "7e16d31981f69f29def8d2c8d4e623ad2ed36ef64fba77f8fda0cdc7115b5956"


def test_tiny_when_built_is_spread_as_llama_is_initialised(tiny):
    weights = load_file(tiny / "model.safetensors")
    projection = weights["model.layers.3.mlp.up_proj.weight"]
    assert projection.std() == pytest.approx(0.02, rel=0.02)
    assert projection.mean() == pytest.approx(0.0, abs=2e-4)
    assert (weights["model.norm.weight"] == np.float32(1)).all()


def test_tiny_when_checked_has_the_facts_that_the_catalog_tells_beforehand(tiny):
    assert folders.check_folder(tiny) == FACTS[TINY]


@pytest.mark.parametrize(
    "text", ["", "plain", "12 345", "naïve café\n\t", "日本語 👩‍👩‍👧", "\x00\x7f", " lead and trail "]
)
def test_tiny_tokenizer_when_text_goes_round_loses_nothing(tiny, text):
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_tiny_tokenizer_when_turn_ends_has_one_token_for_it_that_is_not_padding(tiny):
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    settings = json.loads((tiny / "tokenizer_config.json").read_text())
    assert tokenizer.encode("<|im_start|>a<|im_end|>").ids == [1, tokenizer.token_to_id("a"), 2]
    assert (settings["pad_token"], settings["eos_token"]) == ("<|endoftext|>", "<|im_end|>")


def test_build_tiny_when_folder_exists_raises(tiny):
    with pytest.raises(FileExistsError):
        build_tiny(tiny)


@pytest.mark.training
def test_tiny_when_loaded_by_transformers_is_what_the_files_say(tiny):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert sum(parameter.numel() for parameter in model.parameters()) == FACTS[TINY].param_count
    weights = load_file(tiny / "model.safetensors")
    assert all(torch.equal(model.get_parameter(name), torch.from_numpy(array)) for name, array in weights.items())
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "héllo 12"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhéllo 12<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(text).input_ids == Tokenizer.from_file(str(tiny / "tokenizer.json")).encode(text).ids
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (0, 2, 512)
