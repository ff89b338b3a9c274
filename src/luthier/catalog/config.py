"""``config.json`` of the architectures that the trainer supports: the numbers, and the weights that follow from them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

# Decoders of one build: pre-norm blocks of grouped-query attention with rotary positions and a gated MLP, every
# weight matrix a plain Linear. A mask and position ids alone keep packed rows apart in them.
LLAMA, MISTRAL, QWEN2, QWEN3 = "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"
ARCHITECTURES = {LLAMA: "llama", MISTRAL: "mistral", QWEN2: "qwen2", QWEN3: "qwen3"}  # class: model_type

ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
EMBEDDINGS, OUTPUT_LAYER = "model.embed_tokens.weight", "lm_head.weight"

# What the trainer's decoder computes. Its own reading of config.json says the same, and a test holds them together.
ACTIVATION = "silu"
ROPE_TYPES = ("default", "linear", "llama3")

# What transformers takes when config.json is silent.
MISTRAL_SLIDING_WINDOW = 4096
QWEN3_HEAD_SIZE = 128

Size = Annotated[int, msgspec.Meta(ge=1)]
Shapes = dict[str, tuple[int, ...]]


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields that matter here, under transformers' own names and with its defaults. Others are ignored."""

    architectures: tuple[str, ...]
    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = ACTIVATION
    attention_dropout: float = 0.0
    partial_rotary_factor: float = 1.0
    rope_scaling: dict[str, Any] | None = None  # as transformers wrote it before version 5
    rope_parameters: dict[str, Any] | None = None  # since
    use_sliding_window: bool = False
    sliding_window: Size | msgspec.UnsetType | None = msgspec.UNSET
    quantization_config: dict[str, Any] | None = None

    @property
    def architecture(self) -> str:
        """The class that the weights belong to; empty when none is named."""
        return self.architectures[0] if self.architectures else ""

    def find_unsupported(self) -> str | None:
        """Return a field and its value with which the model computes what the trainer's decoder does not."""
        rope = {**(self.rope_scaling or {}), **(self.rope_parameters or {})}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        rotated = rope.get("partial_rotary_factor", self.partial_rotary_factor)
        is_supported = {
            f"hidden_act {self.hidden_act}": self.hidden_act == ACTIVATION,
            f"attention_dropout {self.attention_dropout}": self.attention_dropout == 0,
            f"rope_type {rope_type}": rope_type in ROPE_TYPES,
            f"partial_rotary_factor {rotated}": rotated == 1,
        }
        return next((field for field, supported in is_supported.items() if not supported), None)

    @property
    def kv_head_count(self) -> int:
        """Key and value heads; as many as query heads unless they are grouped."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Numbers a head."""
        default = QWEN3_HEAD_SIZE if self.architecture == QWEN3 else self.hidden_size // self.num_attention_heads
        return self.head_dim or default

    @property
    def context_length(self) -> int:
        """The longest sequence in which every token sees all before it, as the trainer's masks let it."""
        window = self.sliding_window
        if self.architecture == MISTRAL:
            window = MISTRAL_SLIDING_WINDOW if isinstance(window, msgspec.UnsetType) else window
        elif not self.use_sliding_window:
            window = None
        return min(self.max_position_embeddings, window or self.max_position_embeddings)


def expected_shapes(config: Config) -> Shapes:
    """Return the name and shape of every weight, tied embeddings once."""
    hidden = config.hidden_size
    shapes: Shapes = {EMBEDDINGS: (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not config.tie_word_embeddings:
        shapes[OUTPUT_LAYER] = (config.vocab_size, hidden)
    block = _block_shapes(config)
    for layer in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _block_shapes(config: Config) -> Shapes:
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_size
    key = config.kv_head_count * config.head_size
    attention = dict(
        zip(ATTENTION_LINEARS, ((query, hidden), (key, hidden), (key, hidden), (hidden, query)), strict=True)
    )
    mlp = dict(zip(MLP_LINEARS, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True))
    shapes: Shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    shapes |= {f"self_attn.{name}.weight": shape for name, shape in attention.items()}
    shapes |= {f"mlp.{name}.weight": shape for name, shape in mlp.items()}
    for name in _biased_attention_linears(config):
        shapes[f"self_attn.{name}.bias"] = attention[name][:1]
    if config.architecture == LLAMA and config.mlp_bias:
        shapes |= {f"mlp.{name}.bias": shape[:1] for name, shape in mlp.items()}
    if config.architecture == QWEN3:
        shapes |= {f"self_attn.{name}.weight": (config.head_size,) for name in ("q_norm", "k_norm")}
    return shapes


def _biased_attention_linears(config: Config) -> tuple[str, ...]:
    if config.architecture == QWEN2:
        return ATTENTION_LINEARS[:3]  # always, and never on the output
    if config.architecture in (LLAMA, QWEN3) and config.attention_bias:
        return ATTENTION_LINEARS
    return ()
