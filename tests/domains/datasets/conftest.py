"""A tokenizer small enough to build in a test, and model folders around it with one chat template or another."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Writes its own system message when there is none, as SmolLM2's does.
CHATML_WITH_DEFAULT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Starts with bos, trims, and refuses what does not alternate, as Gemma's does.
TRIMMING = """{{ bos_token }}{% if not messages %}{{ raise_exception('no messages') }}{% endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/...') }}
    {%- endif %}
    {{- '<|im_start|>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
    {{- message.content | trim + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"""
# Shows tools, calls and reasoning; of earlier turns the reasoning is dropped and the last one always thinks: Qwen3's way.
THINKING = """
{%- if tools %}{{- '<|im_start|>system\n' }}{% for tool in tools %}{{- tool | tojson }}{% endfor %}{{- '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last_user=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.index0 > ns.last_user and (loop.last or message.reasoning_content) %}
        {{- '<think>\n' + (message.reasoning_content or '') + '\n</think>\n' }}
    {%- endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

TEMPLATES = {
    "chatml": CHATML,
    "default system": CHATML_WITH_DEFAULT,
    "trimming": TRIMMING,
    "thinking": THINKING,
    "no end": "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    "generation": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Asked for or not, as Llama 3's first one does.
    "prompting always": CHATML.replace("{% if add_generation_prompt %}", "{% if true %}"),
    "one end": "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}"
    "{% if loop.last %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    "broken": "{% for message in messages %}",
    "hostile": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "hostile namespace": "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "dated": "{{ strftime_now('%d %b %Y') }}" + CHATML,
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = ["the price of a job is the price of its tokens", "user assistant system hello there, how are you?"] * 20


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE with ChatML's special tokens: 0 end of text, 1 start, 2 end of turn."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    built.train_from_iterator(CORPUS, trainer)
    return built


@pytest.fixture
def make_model(tmp_path, tokenizer):
    """Return a function that writes a model folder with a template, by its name, or without one."""

    def make(name: str | None, *, adds_bos: bool = False, trims_offsets: bool = False, in_own_file: bool = False):
        template = None if name is None else TEMPLATES[name]
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        own = Tokenizer.from_str(tokenizer.to_str())
        if adds_bos:
            own.post_processor = processors.TemplateProcessing(
                single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
            )
        if trims_offsets:
            own.post_processor = processors.ByteLevel(trim_offsets=True)
        own.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": {"content": "<|im_start|>", "__type": "AddedToken"},
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
        }
        if in_own_file:
            (folder / "chat_template.jinja").write_text(template)
        elif template is not None:
            config["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def write_rows(tmp_path):
    """Return a function that writes rows, one JSON object a line, and returns the path."""

    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
