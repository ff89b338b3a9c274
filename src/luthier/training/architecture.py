"""``config.json`` of the decoders that are trained here: the numbers that the weights themselves do not tell."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor

QWEN3_HEAD_SIZE = 128  # what transformers takes when its config.json is silent

_WholeHead = Annotated[float, msgspec.Meta(ge=1, le=1)]  # these decoders turn every number of a head


class Rope(msgspec.Struct, frozen=True):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) and how they were stretched over a longer context."""

    rope_type: Literal["default", "linear", "llama3"] = "default"
    rope_theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    partial_rotary_factor: _WholeHead = 1.0

    def make_frequencies(self, head_size: int) -> Tensor:
        """Return the angle that each pair of numbers turns a position, [head_size / 2], in fp32."""
        exponents = torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size
        frequencies = 1.0 / self.rope_theta**exponents
        if self.rope_type == "linear":
            return frequencies / self.factor
        return self._stretch_low_frequencies(frequencies) if self.rope_type == "llama3" else frequencies

    def _stretch_low_frequencies(self, frequencies: Tensor) -> Tensor:
        """Divide by ``factor`` what turns slowly, keep what turns quickly, and blend between (Llama 3.1)."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)  # in the first context length
        share_kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        share_kept = share_kept.clamp(0, 1)
        return share_kept * frequencies + (1 - share_kept) * frequencies / self.factor


class Architecture(msgspec.Struct, frozen=True):
    """Sizes and constants under transformers' names. Fields that are not here change nothing, or are refused."""

    architectures: tuple[Literal["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_dropout: Annotated[float, msgspec.Meta(ge=0, le=0)] = 0.0  # none is computed
    partial_rotary_factor: _WholeHead = 1.0
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None  # as transformers wrote it before version 5
    rope_parameters: dict[str, Any] | None = None  # since

    @property
    def kv_head_count(self) -> int:
        """Key and value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Numbers a head."""
        is_qwen3 = self.architectures[0] == "Qwen3ForCausalLM"
        return self.head_dim or (QWEN3_HEAD_SIZE if is_qwen3 else self.hidden_size // self.num_attention_heads)

    @property
    def rope(self) -> Rope:
        """The rotary positions, in whichever form they are written. Raises msgspec.ValidationError."""
        written = {"rope_theta": self.rope_theta, **(self.rope_scaling or {}), **(self.rope_parameters or {})}
        return msgspec.convert({"rope_type": written.get("type", "default"), **written}, Rope)


def read_architecture(folder: Path) -> Architecture:
    """Read ``config.json``. Raises OSError or msgspec.MsgspecError, which names the field that is not known here."""
    architecture = msgspec.json.decode((folder / "config.json").read_bytes(), type=Architecture)
    _ = architecture.rope
    return architecture
