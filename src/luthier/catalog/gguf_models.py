"""Converts a GGUF file of the Llama family into an ordinary model folder, with gguf and numpy alone.

Whatever is not understood to the last detail is refused: a wrong guess would train on wrong numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from luthier.catalog import llama
from luthier.catalog.config import LLAMA, Config, expected_shapes
from luthier.catalog.refusal import FetchRefused

_CONTROL, _USER_DEFINED = 3, 4  # kinds of token, as llama.cpp numbers them

_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK_WEIGHT = re.compile(rf"blk\.(\d+)\.({'|'.join(_BLOCK_NAMES)})\.weight")


def convert(source: Path, folder: Path) -> str:
    """Write the model of ``source`` into an existing empty folder; return what its weights went through, in words.

    Raises FetchRefused for a file that is damaged, or whose model or tokenizer is not known exactly.
    """
    try:
        return _convert(source, folder)
    except (ValueError, IndexError, KeyError, msgspec.ValidationError) as error:  # what a torn file ends in
        raise _damaged(source, error) from error


def _convert(source: Path, folder: Path) -> str:
    reader = GGUFReader(source)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    config = _read_config(source, metadata, has_output="output.weight" in {part.name for part in reader.tensors})
    tokenizer = _make_tokenizer(source, metadata)
    chat = _read_chat(source, metadata)
    weights = _read_weights(source, reader, config)
    llama.write_folder(folder, config, weights, tokenizer, chat, as_bfloat16=True)
    return _describe_precision(reader)


def _read_config(source: Path, metadata: Mapping[str, Any], *, has_output: bool) -> Config:
    family = metadata.get("general.architecture")
    if family != "llama":
        raise FetchRefused(
            "model_architecture_unsupported",
            f"only GGUF files of the Llama family can be converted: {source.name} is of {family}",
            hint="use the original weights, as a folder or from the hub",
        )
    for key in metadata:
        if key.startswith(("llama.rope.scaling.", "llama.expert")):
            raise _unknown_feature(source, key, metadata[key])
    heads = metadata["llama.attention.head_count"]
    head_size = metadata.get("llama.attention.key_length", metadata["llama.embedding_length"] // heads)
    rotated = metadata.get("llama.rope.dimension_count", head_size)
    if rotated != head_size:
        raise _unknown_feature(source, "llama.rope.dimension_count", rotated)
    fields = {
        "architectures": (LLAMA,),
        "model_type": "llama",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": head_size,
        "max_position_embeddings": metadata["llama.context_length"],
        # Stored as float32: 9.999999747378752e-06 was written for 1e-05.
        "rms_norm_eps": float(
            np.format_float_scientific(np.float32(metadata["llama.attention.layer_norm_rms_epsilon"]))
        ),
        "rope_theta": float(metadata.get("llama.rope.freq_base", 10_000.0)),
        "tie_word_embeddings": not has_output,
    }
    return msgspec.convert(fields, Config)


def _read_weights(source: Path, reader: GGUFReader, config: Config) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each weight under transformers' name, one at a time: all of them in float32 would be large."""
    shapes = expected_shapes(config)
    for tensor in reader.tensors:
        name = _translate_name(source, tensor.name)
        data = np.asarray(tensor.data)  # no longer a memmap, which takes twice as long to cut into blocks
        weight = cast("NDArray[np.float32]", dequantize(data, tensor.tensor_type))
        shape = shapes.pop(name, None)
        if weight.shape != shape:
            raise _damaged(source, f"{tensor.name} is {weight.shape}, not {shape}")
        if name.endswith("q_proj.weight"):
            weight = _unpermute(weight, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            weight = _unpermute(weight, config.kv_head_count)
        yield name, weight
    if shapes:
        raise _damaged(source, f"{len(shapes)} weights are missing, such as {min(shapes)}")


def _translate_name(source: Path, name: str) -> str:
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    found = _BLOCK_WEIGHT.fullmatch(name)
    if found is None:
        raise _unknown_feature(source, "the tensor", name)
    return f"model.layers.{found[1]}.{_BLOCK_NAMES[found[2]]}.weight"


def _unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Put the rows of a query or key matrix back into transformers' order.

    llama.cpp rotates neighbouring rows of a head (2i, 2i + 1), transformers the halves (i, i + half); so the
    former stores [heads, half, 2, in] what the latter holds as [heads, 2, half, in].
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _make_tokenizer(source: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise _unknown_feature(source, "tokenizer.ggml.model", kind)
    if metadata.get("tokenizer.ggml.add_bos_token"):
        raise _unknown_feature(source, "tokenizer.ggml.add_bos_token", "true")
    symbols = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=merges))
    tokenizer.pre_tokenizer = _make_pre_tokenizer(source, metadata)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = dict(zip(symbols, metadata["tokenizer.ggml.token_type"], strict=True))
    tokenizer.add_special_tokens([_make_token(symbol) for symbol in symbols if kinds[symbol] == _CONTROL])
    tokenizer.add_tokens([_make_token(symbol) for symbol in symbols if kinds[symbol] == _USER_DEFINED])
    return tokenizer


def _make_token(symbol: str) -> AddedToken:
    return AddedToken(symbol, normalized=False)


def _make_pre_tokenizer(source: Path, metadata: Mapping[str, Any]) -> pre_tokenizers.PreTokenizer:
    """Return how text is cut before the byte pairs are merged; GGUF keeps only a name for it."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    name = metadata.get("tokenizer.ggml.pre")
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name == "gpt-2":
        return byte_level
    raise _unknown_feature(source, "tokenizer.ggml.pre", name)


def _read_chat(source: Path, metadata: Mapping[str, Any]) -> llama.Chat:
    """Read the special tokens. Padding must not be the end of a turn, or a trainer that masks one masks the other."""
    symbols, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    bos, eos = metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("padding", "unknown")]
    candidates = [*named, *(i for i, kind in enumerate(kinds) if kind == _CONTROL)]
    pad = next((i for i in candidates if i is not None and i not in (bos, eos)), None)
    if pad is None:
        raise _unknown_feature(source, "the padding token", "none but the end of a turn")
    template = metadata.get("tokenizer.chat_template")
    return llama.Chat(bos=symbols[bos], eos=symbols[eos], pad=symbols[pad], template=template)


def _describe_precision(reader: GGUFReader) -> str:
    """Tell how the most weights were stored."""
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    kind = sizes.most_common(1)[0][0]
    bits = re.match(r"[IT]?Q(\d)", kind)
    return f"dequantised from {bits[1]} bits" if bits else f"converted from {kind}"


def _damaged(source: Path, reason: object) -> FetchRefused:
    return FetchRefused(
        "model_weights_damaged",
        f"{source.name} is cut off or is not a whole GGUF file: {reason}",
        hint="fetch the file anew",
    )


def _unknown_feature(source: Path, feature: str, value: object) -> FetchRefused:
    return FetchRefused(
        "model_feature_unsupported",
        f"{source.name} cannot be converted exactly: {feature} is {value}",
        hint="use the original weights, as a folder or from the hub",
    )
