"""Attention in which every row sees only itself, computed row by row, so that packing costs and leaks nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "luthier_segments"  # a name without a mask function: transformers then builds no mask at all


def attend(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: tuple[int, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally inside each segment; transformers calls it in every layer.

    ``query`` [1, heads, tokens, size], ``key`` and ``value`` [1, kv heads, tokens, size]; returns [1, tokens, heads,
    size]. Row by row is as fast as one call where kernels are not launched but called, and needs no kernel for
    sequences of different lengths.
    """
    assert attention_mask is None, "a mask was built for attention that needs none"
    longest = max(segments)
    assert sliding_window is None or longest <= sliding_window, f"{longest} tokens, a window of {sliding_window}"
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # SDPA can do this itself, but on a CPU its kernel for long rows is half as fast then
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    parts = zip(*(torch.split(tensor, list(segments), dim=2) for tensor in (query, key, value)), strict=True)
    attended = [
        functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, is_causal=True)
        for q, k, v in parts
    ]
    return torch.cat([part.transpose(1, 2) for part in attended], dim=1), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
