"""Facts: what a base model is, read from its folder once and kept beside it."""

from __future__ import annotations

import msgspec


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The architecture in numbers.

    ``param_count`` counts tied embeddings once. ``context_length`` is the longest sequence that the
    weights were made for (a sliding window ends it). ``linear_modules`` are the last parts of the names of every
    linear layer inside the blocks: what ``all-linear`` adapts, the output layer excluded.
    """

    architecture: str  # transformers class, e.g. LlamaForCausalLM
    param_count: int
    context_length: int
    vocab_size: int
    hidden_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    linear_modules: tuple[str, ...]
    has_chat_template: bool  # without one, only text and prompt/completion rows can be trained on
    supports_tools: bool  # the template renders tools
    supports_reasoning: bool  # the template renders reasoning


def parse_facts(document: object) -> Facts:
    """Turn the stored JSON back into facts. Raises msgspec.ValidationError when it is something else."""
    return msgspec.convert(document, Facts)
