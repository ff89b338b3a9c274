"""``luthier/tiny``: a small Llama of random weights and a byte-level tokenizer, the same bits on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from luthier.catalog import llama
from luthier.catalog.config import LLAMA, Config, expected_shapes

SEED = 4400
INIT_STD = 0.02  # what Llama and its kin are initialised with

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # in this order: ids 0, 1, 2
CHAT = llama.Chat(bos="<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", template=CHAT_TEMPLATE)

CONFIG = Config(
    architectures=(LLAMA,),
    model_type="llama",
    vocab_size=len(SPECIAL_TOKENS) + 256,
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)


def write_tiny(folder: Path) -> None:
    """Write the model into an existing empty folder."""
    llama.write_folder(folder, CONFIG, _make_weights(), _make_tokenizer(), CHAT, as_bfloat16=False)


def _make_weights() -> Iterator[tuple[str, NDArray[np.float32]]]:
    generator = np.random.PCG64(SEED)
    for name, shape in expected_shapes(CONFIG).items():
        yield name, np.ones(shape, np.float32) if len(shape) == 1 else _draw_normal(generator, shape)


def _draw_normal(generator: np.random.PCG64, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw nearly normal numbers in exact arithmetic: the sum of twelve uniform ones, less its mean.

    numpy promises the raw stream of a bit generator for ever, but neither the stream of its normal
    numbers nor the last bit of the logarithms in them.
    """
    count = int(np.prod(shape))
    raw = generator.random_raw(count * 3).astype("<u8").view("<u2").reshape(count, 12)
    # One uniform number has variance 1/12, so the sum of twelve has variance 1. The mean is 12 × 65535 / 2.
    centred: NDArray[np.int64] = raw.sum(axis=1, dtype=np.int64) - 393_210
    scaled: NDArray[np.float32] = (centred * (INIT_STD / 65_536)).astype(np.float32)
    return scaled.reshape(shape)


def _make_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token for each byte, after the special ones."""
    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer
