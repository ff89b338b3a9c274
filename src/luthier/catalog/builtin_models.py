"""The base models that are always there, with facts that are known before any weights are."""

from __future__ import annotations

from luthier.catalog.facts import Facts

TINY = "luthier/tiny"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"

_LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

FACTS = {
    TINY: Facts(
        architecture="LlamaForCausalLM",
        param_count=1_017_344,
        context_length=512,
        vocab_size=259,
        hidden_size=128,
        layer_count=4,
        head_count=4,
        kv_head_count=2,
        linear_modules=_LLAMA_LINEARS,
        has_chat_template=True,
        supports_tools=False,
        supports_reasoning=False,
    ),
    SMOLLM2: Facts(
        architecture="LlamaForCausalLM",
        param_count=134_515_008,
        context_length=8192,
        vocab_size=49_152,
        hidden_size=576,
        layer_count=30,
        head_count=9,
        kv_head_count=3,
        linear_modules=_LLAMA_LINEARS,
        has_chat_template=True,
        supports_tools=False,
        supports_reasoning=False,
    ),
}
