from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from luthier.catalog import folders, gguf_models
from luthier.catalog.builtin_models import FACTS, TINY
from luthier.catalog.refusal import FetchRefused

BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute_for_llama_cpp(weight, heads):
    """Reorder rows as llama.cpp's own converter does (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


@pytest.fixture
def write_gguf(tiny, tmp_path):
    """Write ``luthier/tiny`` as a GGUF file, with some of its metadata changed (None leaves a key out)."""

    def write(**changes):
        path = tmp_path / "tiny.gguf"
        tokenizer = json.loads((tiny / "tokenizer.json").read_text())
        symbols = list(tokenizer["model"]["vocab"])
        config = json.loads((tiny / "config.json").read_text())
        values = {
            "architecture": "llama",
            "pre": "gpt-2",
            "padding": 2,
            "context": config["max_position_embeddings"],
            "merges": ["t h", "1 2"],
            "extra": {},
        } | changes
        writer = GGUFWriter(path, values["architecture"])
        writer.add_block_count(config["num_hidden_layers"])
        if values["context"] is not None:
            writer.add_context_length(values["context"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(values["pre"])
        writer.add_token_list([*symbols[:-2], "th", "12"])  # two rare bytes give way to the merged pairs
        writer.add_token_types([3, 3, 3] + [1] * (len(symbols) - 3))
        writer.add_token_merges(values["merges"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(values["padding"])
        for key, value in values["extra"].items():
            writer.add_string(key, value)
        for name, weight in load_file(tiny / "model.safetensors").items():
            writer.add_tensor(rename(name), to_llama_cpp(name, weight, config))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def rename(name):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{BLOCK_NAMES[rest.removesuffix('.weight')]}.weight"


def to_llama_cpp(name, weight, config):
    if "q_proj" in name:
        return permute_for_llama_cpp(weight, config["num_attention_heads"])
    if "k_proj" in name:
        return permute_for_llama_cpp(weight, config["num_key_value_heads"])
    return weight


def convert(source, tmp_path):
    folder = tmp_path / "converted"
    folder.mkdir(exist_ok=True)
    words = gguf_models.convert(source, folder)
    return folder, words


def read_bfloat16(path, name):
    """Return a bfloat16 tensor as float32, by way of its bits."""
    raw = path.read_bytes()
    header_size = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8 : 8 + header_size])[name]
    assert entry["dtype"] == "BF16"
    start, end = (8 + header_size + offset for offset in entry["data_offsets"])
    bits = np.frombuffer(raw[start:end], "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(entry["shape"])


def test_convert_when_llama_gives_its_weights_back(write_gguf, tiny, tmp_path):
    folder, words = convert(write_gguf(), tmp_path)
    assert words == "converted from F32"
    assert folders.check_folder(folder) == msgspec.structs.replace(FACTS[TINY], has_chat_template=False)
    originals = load_file(tiny / "model.safetensors")
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert set(file.keys()) == set(originals)
        assert file.metadata() == {"format": "pt"}
    for name in (
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.3.self_attn.k_proj.weight",
        "model.norm.weight",
    ):
        converted = read_bfloat16(folder / "model.safetensors", name)
        # bfloat16 keeps 8 bits: rounding moves a number by 2⁻⁸ of itself at most.
        np.testing.assert_allclose(converted, originals[name], rtol=2**-8, atol=0)


def test_convert_when_pad_is_the_end_of_turn_chooses_another(write_gguf, tmp_path):
    folder, _ = convert(write_gguf(padding=2), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (0, 1, 2)
    assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == "<|endoftext|>"


@pytest.mark.parametrize(("pre", "tokens"), [("gpt-2", ["12", "th"]), ("smollm", ["1", "2", "th"])])
def test_convert_when_pre_tokenizer_is_named_cuts_digits_as_it_does(write_gguf, tmp_path, pre, tokens):
    folder, _ = convert(write_gguf(pre=pre), tmp_path)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("12th").tokens == tokens


def test_convert_when_template_is_there_keeps_it(write_gguf, tmp_path):
    folder, _ = convert(write_gguf(extra={"tokenizer.chat_template": "{{ messages }}"}), tmp_path)
    assert folders.check_folder(folder).has_chat_template


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "gemma3"}, "gemma3"),
        ({"pre": "deepseek-coder"}, "deepseek-coder"),
        ({"extra": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type"),
    ],
)
def test_convert_when_something_is_not_understood_names_it(write_gguf, tmp_path, changes, named):
    with pytest.raises(FetchRefused, match=named):
        convert(write_gguf(**changes), tmp_path)


def test_convert_when_metadata_is_missing_names_it(write_gguf, tmp_path):
    with pytest.raises(FetchRefused, match=r"llama\.context_length"):
        convert(write_gguf(context=None), tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.99])
def test_convert_when_file_is_cut_off_refuses(write_gguf, tmp_path, share):
    source = write_gguf()
    with source.open("r+b") as file:
        file.truncate(int(source.stat().st_size * share))
    with pytest.raises(FetchRefused, match=r"tiny\.gguf is cut off"):
        convert(source, tmp_path)
