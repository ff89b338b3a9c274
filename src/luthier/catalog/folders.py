"""Model folders in the Hugging Face layout: what is taken from them, what is refused, and what identifies them.

Only data is ever read: safetensors, JSON and templates. Pickles and code are refused, never opened.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from luthier import home
from luthier.catalog.config import (
    ACTIVATION,
    ARCHITECTURES,
    ATTENTION_LINEARS,
    EMBEDDINGS,
    MLP_LINEARS,
    OUTPUT_LAYER,
    ROPE_TYPES,
    Config,
    expected_shapes,
)
from luthier.catalog.facts import Facts
from luthier.catalog.refusal import FetchRefused

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
WEIGHT_PATTERNS = (WEIGHTS, "model-*.safetensors")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# Everything that decides how text becomes tokens.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# The older forms of a tokenizer are for other programs that read what is made of the model; the licence is for people.
SMALL_FILE_PATTERNS = (
    *("config.json", "generation_config.json", WEIGHTS_INDEX, *TOKENIZER_FILES),
    *("tokenizer.model", "vocab.json", "merges.txt", "LICENSE*", "NOTICE*"),
)

LAYOUT_HINT = (
    "a model is config.json, model.safetensors and tokenizer.json in one folder, as save_pretrained writes them; "
    "an adapter has to be merged into its base model first"
)

_BUFFERS = ".rotary_emb.inv_freq"  # older programs saved what follows from config.json
_FLOATS = ("F32", "F16", "BF16")
_SHARD_NAME = re.compile(r"model-[A-Za-z0-9_-]+\.safetensors")


class _WeightsIndex(msgspec.Struct):
    weight_map: dict[str, str]  # weight → file


@dataclass(frozen=True)
class Identity:
    """``revision`` changes with the weights or the configuration, ``tokenizer_digest`` with the tokens of any text."""

    revision: str
    tokenizer_digest: str
    size_bytes: int


def check_small_files(folder: Path) -> Config:
    """Check all that can be known without the weights: architecture, tokenizer, that no code is wanted.

    Raises FetchRefused naming the file at fault and the way out.
    """
    _require_no_code(folder)
    config = _read_config(folder)
    tokenizer = _read_tokenizer(folder)
    largest_id = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest_id >= config.vocab_size:
        raise FetchRefused(
            "model_tokenizer_mismatch",
            f"tokenizer.json has token {largest_id}, but the weights know {config.vocab_size} tokens",
            hint="use the tokenizer that the model was trained with",
        )
    return config


def check_folder(folder: Path) -> Facts:
    """Check a whole model folder, reading the headers of the weights only, and return its facts.

    Raises FetchRefused naming the file at fault and the way out.
    """
    config = check_small_files(folder)
    shapes = expected_shapes(config)
    _check_weights(folder, shapes)
    template = _read_chat_template(folder)
    return Facts(
        architecture=config.architecture,
        param_count=sum(_count(shape) for shape in shapes.values()),
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layer_count=config.num_hidden_layers,
        head_count=config.num_attention_heads,
        kv_head_count=config.kv_head_count,
        linear_modules=ATTENTION_LINEARS + MLP_LINEARS,
        has_chat_template=bool(template),
        supports_tools=bool(re.search(r"\btools\b", template)),
        supports_reasoning="reasoning_content" in template or "<think>" in template,
    )


def list_weight_files(folder: Path) -> list[str]:
    """Return the names of the weight files, in order. Raises FetchRefused when there are none that may be read."""
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        raise refuse_weights(path.name for path in folder.iterdir())
    try:
        names = sorted(set(msgspec.json.decode(index.read_bytes(), type=_WeightsIndex).weight_map.values()))
    except msgspec.MsgspecError as error:
        raise _invalid(index, error) from error
    for name in names:
        if not _SHARD_NAME.fullmatch(name) or not (folder / name).is_file():
            raise FetchRefused(
                "model_file_missing",
                f"{WEIGHTS_INDEX} names a weight file that is not there: {name[:200]!r}",
                hint="put all the files of the model into one folder",
            )
    return names


def list_files(folder: Path) -> list[str]:
    """Return the names of all that belongs to the model: what is copied; anything else in the folder is left."""
    small = {path.name for pattern in SMALL_FILE_PATTERNS for path in folder.glob(pattern) if path.is_file()}
    if (folder / WEIGHTS).exists():
        small.discard(WEIGHTS_INDEX)  # transformers takes the single file, too
    return sorted(small | set(list_weight_files(folder)))


def identify(folder: Path) -> Identity:
    """Read a checked folder whole and return what identifies it."""
    weights = list_weight_files(folder)
    return Identity(
        revision=_digest(folder, ["config.json", *weights]),
        tokenizer_digest=_digest(folder, [name for name in TOKENIZER_FILES if (folder / name).exists()]),
        size_bytes=sum((folder / name).stat().st_size for name in list_files(folder)),
    )


def require_outside(private_dir: Path, folder: Path) -> None:
    """Raise FetchRefused when a folder, or a link in it, leads into ``private_dir``."""
    for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        if home.leads_into(path, private_dir):
            raise FetchRefused(
                "model_folder_private",
                f"this is the server's own, and holds what other projects own: {path.name}",
                hint="copy the model to a folder outside the server's home, and name that one",
            )


def copy_files(source: Path, destination: Path) -> None:
    """Check a model folder and copy what belongs to the model into an existing empty one.

    Copies, not hard links: a program that later writes into the source's files in place, as save_pretrained
    does, would change a model that jobs use. Raises FetchRefused also when the source changes meanwhile.
    """
    if not source.is_dir():
        raise FetchRefused("model_folder_missing", "there is no such folder on the server", hint=LAYOUT_HINT)
    check_folder(source)
    names = list_files(source)
    before = [_stamp(source / name) for name in names]
    for name in names:
        shutil.copyfile(source / name, destination / name)
    if [_stamp(source / name) for name in names] != before:
        raise FetchRefused(
            "model_folder_changed", "the folder changed while it was copied", hint="try again", is_final=False
        )


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _read_config(folder: Path) -> Config:
    path = folder / "config.json"
    if not path.is_file():
        raise FetchRefused(
            "model_file_missing",
            "there is no config.json",
            hint=LAYOUT_HINT,
        )
    _require_known_architecture(path)
    try:
        config = msgspec.json.decode(path.read_bytes(), type=Config)
    except msgspec.MsgspecError as error:
        raise _invalid(path, error) from error
    if config.quantization_config is not None:
        raise FetchRefused(
            "model_quantized",
            "the weights are quantised: quantization_config in config.json",
            hint="use the original weights, in bf16, fp16 or fp32",
        )
    if feature := config.find_unsupported():
        raise FetchRefused(
            "model_feature_unsupported",
            f"the trainer does not support what config.json asks for: {feature}",
            hint=f"use a model of hidden_act {ACTIVATION}, no attention_dropout, rope_type {' or '.join(ROPE_TYPES)}",
        )
    return config


def _require_known_architecture(path: Path) -> None:
    """Check the architecture before the numbers, which another one may not have."""
    document = _read_json(path)
    named = document.get("architectures")
    kind = document.get("model_type")
    if named not in [[architecture] for architecture in ARCHITECTURES] or kind != ARCHITECTURES[named[0]]:
        raise FetchRefused(
            "model_architecture_unsupported",
            f"the trainer does not support this architecture: {named}, model_type {kind}, in config.json",
            hint=f"use a model of one of: {', '.join(ARCHITECTURES)}",
        )


def _require_no_code(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and _read_json(path).get("auto_map"):
            raise FetchRefused(
                "model_needs_code",
                f"the model brings code of its own, which is never run: auto_map in {name}",
                hint="use a model that transformers knows by itself",
            )


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FetchRefused(
            "model_tokenizer_missing",
            "there is no tokenizer.json",
            hint="make one: transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no other kind
        raise _invalid(path, error) from error


def _read_chat_template(folder: Path) -> str:
    """Return the chat template's text; empty when there is none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    template = _read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # several by name
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else ""


def _check_weights(folder: Path, expected: dict[str, tuple[int, ...]]) -> None:
    missing = dict(expected)
    for name in list_weight_files(folder):
        path = folder / name
        for weight, (dtype, shape) in _read_header(path).items():
            if weight.endswith(_BUFFERS):
                continue
            # Tied embeddings may be stored twice, as those of Qwen3 are: the output layer's copy is never read.
            is_copy = weight == OUTPUT_LAYER and weight not in expected
            wanted = expected[EMBEDDINGS] if is_copy else missing.pop(weight, None)
            if wanted is None:
                raise FetchRefused(
                    "model_weights_mismatch",
                    f"{name}: {weight} has no place in the model that config.json tells",
                    hint="use weights and config.json of the same model; saving it anew with transformers puts them right",
                )
            if dtype not in _FLOATS or shape != wanted:
                raise FetchRefused(
                    "model_weights_mismatch",
                    f"{name}: {weight} is {dtype} {list(shape)}, but config.json says {list(wanted)} in bf16, fp16 or fp32",
                    hint="use weights and config.json of the same model, not quantised",
                )
    if missing:
        raise FetchRefused(
            "model_weights_incomplete",
            f"{len(missing)} of {len(expected)} weights are missing: {', '.join(list(missing)[:3])}, …",
            hint="put all the files of the model into one folder",
        )


def _read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of each weight. Raises FetchRefused for a file that is cut off or is something else."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise FetchRefused(
            "model_weights_damaged",
            f"{path.name} is cut off or is not a safetensors file ({path.stat().st_size} bytes): {error}",
            hint="fetch the file anew",
        ) from error


def refuse_weights(names: Iterable[str]) -> FetchRefused:
    """Return why there are no weights among the files of these names."""
    pickles = sorted(name for name in names if Path(name).suffix in PICKLE_SUFFIXES)
    if pickles:
        return FetchRefused(
            "model_weights_pickled",
            f"the weights are pickles, which can run code and are never opened: {pickles[0]}",
            hint="save the model with safetensors: model.save_pretrained(FOLDER)",
        )
    return FetchRefused("model_file_missing", f"there is neither {WEIGHTS} nor {WEIGHTS_INDEX}", hint=LAYOUT_HINT)


def _invalid(path: Path, error: Exception) -> FetchRefused:
    return FetchRefused("model_file_invalid", f"{path.name} cannot be read: {error}", hint="fetch the file anew")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise _invalid(path, error) from error


def _digest(folder: Path, names: list[str]) -> str:
    total = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
