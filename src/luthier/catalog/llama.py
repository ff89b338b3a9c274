"""Writes a Llama model as an ordinary folder in the Hugging Face layout, from arrays and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file
from tokenizers import Tokenizer

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Shape:
    """The numbers of ``config.json``."""

    vocab_size: int
    context_length: int
    hidden_size: int
    intermediate_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_size: int
    rms_norm_eps: float
    rope_theta: float
    ties_embeddings: bool


@dataclass(frozen=True)
class Chat:
    """The tokenizer's special tokens, and the template that turns messages into text (None: there is none)."""

    bos: str
    eos: str
    pad: str
    template: str | None


def write_folder(
    folder: Path, shape: Shape, weights: Weights, tokenizer: Tokenizer, chat: Chat, *, as_bfloat16: bool
) -> None:
    """Write weights, configuration and tokenizer into an existing empty folder.

    As bfloat16, rounded to the nearest even; as float32 otherwise.
    """
    _write_weights(folder / "model.safetensors", weights, as_bfloat16=as_bfloat16)
    ids = {
        "bos_token_id": tokenizer.token_to_id(chat.bos),
        "eos_token_id": tokenizer.token_to_id(chat.eos),
        "pad_token_id": tokenizer.token_to_id(chat.pad),
    }
    _write_json(folder / "config.json", _make_config(shape, "bfloat16" if as_bfloat16 else "float32") | ids)
    _write_json(folder / "generation_config.json", ids)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": chat.bos, "eos_token": chat.eos, "pad_token": chat.pad, "unk_token": chat.pad}
    _write_json(folder / "special_tokens_map.json", names)
    template = {} if chat.template is None else {"chat_template": chat.template}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; named classes rebuild it
        "model_max_length": shape.context_length,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings | names | template)


def expected_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every weight of such a model."""
    hidden, query, key = shape.hidden_size, shape.head_count * shape.head_size, shape.kv_head_count * shape.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not shape.ties_embeddings:
        shapes["lm_head.weight"] = (shape.vocab_size, hidden)
    for layer in range(shape.layer_count):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (query, hidden),
            f"{prefix}.self_attn.k_proj.weight": (key, hidden),
            f"{prefix}.self_attn.v_proj.weight": (key, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, query),
            f"{prefix}.mlp.gate_proj.weight": (shape.intermediate_size, hidden),
            f"{prefix}.mlp.up_proj.weight": (shape.intermediate_size, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, shape.intermediate_size),
        }
    return shapes


def _make_config(shape: Shape, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context_length,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layer_count,
        "num_attention_heads": shape.head_count,
        "num_key_value_heads": shape.kv_head_count,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": shape.ties_embeddings,
        "use_cache": True,
        "torch_dtype": dtype,  # the spelling that every transformers reads
    }


def _write_weights(path: Path, weights: Weights, *, as_bfloat16: bool) -> None:
    arrays: dict[str, NDArray[Any]] = {
        name: _round_to_bfloat16(array) if as_bfloat16 else array for name, array in weights.items()
    }
    dtype = "bfloat16" if as_bfloat16 else "float32"
    specs = {
        name: TensorSpec(dtype=dtype, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in arrays.items()
    }
    serialize_file(specs, path, metadata={"format": "pt"})  # transformers refuses a file without this mark


def _round_to_bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper halves of finite float32 numbers, rounded to the nearest even as hardware does."""
    assert np.isfinite(array).all(), "a weight is not a finite number"
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
