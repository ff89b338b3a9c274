"""Cross-entropy over a large vocabulary, without keeping the logits.

The logits of a few thousand tokens are the largest tensor of a step by far. Here they exist for a chunk of tokens at a
time: forward computes a chunk's loss and, from the same logits, its gradient, so that nothing is computed twice (the
idea of Liger's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_TOKENS = 512  # logits of 100 MB in fp32 at a vocabulary of 49,152


def sum_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the losses, in fp32. ``hidden`` [targets, width], ``weight`` [vocabulary, width]."""
    loss: Tensor = _SumCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]  # torch's own
    return loss


class _SumCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        # Summed over the chunks in fp32: a bf16 sum would lose what the later chunks add.
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            logits = (hidden[chunk] @ weight.t()).float()  # [chunk, vocabulary]
            loss += functional.cross_entropy(logits, targets[chunk], reduction="sum")
            if hidden_grad is None and weight_grad is None:
                continue
            # d loss / d logits = softmax(logits) - one_hot(target)
            logits_grad = logits.softmax(-1)
            logits_grad[torch.arange(len(logits)), targets[chunk]] -= 1
            logits_grad = logits_grad.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[chunk] = logits_grad @ weight
            if weight_grad is not None:
                weight_grad += (logits_grad.t() @ hidden[chunk]).float()
        ctx.save_for_backward(hidden_grad, None if weight_grad is None else weight_grad.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grads[0]
        return (
            None if hidden_grad is None else hidden_grad * scale.to(hidden_grad.dtype),
            None if weight_grad is None else weight_grad * scale.to(weight_grad.dtype),
            None,
        )
