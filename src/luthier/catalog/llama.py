"""Writes a Llama model as an ordinary folder in the Hugging Face layout, from arrays and a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file
from tokenizers import Tokenizer

from luthier.catalog.config import Config

Weights = Iterable[tuple[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class Chat:
    """The tokenizer's special tokens, and the template that turns messages into text (None: there is none)."""

    bos: str
    eos: str
    pad: str
    template: str | None


def write_folder(
    folder: Path, config: Config, weights: Weights, tokenizer: Tokenizer, chat: Chat, *, as_bfloat16: bool
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
    dtype = {"torch_dtype": "bfloat16" if as_bfloat16 else "float32"}  # the spelling that every transformers reads
    _write_json(folder / "config.json", msgspec.to_builtins(config) | dtype | ids)
    _write_json(folder / "generation_config.json", ids)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": chat.bos, "eos_token": chat.eos, "pad_token": chat.pad, "unk_token": chat.pad}
    _write_json(folder / "special_tokens_map.json", names)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; named classes rebuild it
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    template = {} if chat.template is None else {"chat_template": chat.template}
    _write_json(folder / "tokenizer_config.json", settings | names | template)


def _write_weights(path: Path, weights: Weights, *, as_bfloat16: bool) -> None:
    arrays: dict[str, NDArray[Any]] = {
        name: _round_to_bfloat16(array) if as_bfloat16 else array for name, array in weights
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
