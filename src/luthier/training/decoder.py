"""The decoder of Llama and its kin (Mistral, Qwen2, Qwen3): pre-norm blocks of grouped-query attention and gated MLP.

Module names are those of the checkpoint. Every row attends to itself alone, row by row, so that packing costs nothing
and leaks nothing; no mask and no padding exists. The tests hold it against transformers' own classes.

Ours, because a worker that imports transformers spends longer on that than on torch, and more than a small job trains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from luthier.training.architecture import Architecture

# Where the activations of all blocks would take more than this, a block keeps its input only and computes the rest
# again in the backward pass, which costs a third more time: a row of 8,192 tokens of a 135M model would hold 17 GB. On a
# CPU a batch of usual size stays below up to 1.7B parameters in fp32. What stands for the others was never measured.
ACTIVATION_BYTES = {"cpu": 3 * 1024**3, "cuda": 8 * 1024**3, "mps": 3 * 1024**3}
ACTIVATIONS_A_WIDTH = 30  # numbers that a block holds of a token for each of its width: 2.0 MB measured at 135M in fp32

OUTPUT_LAYER = "lm_head.weight"  # of tied embeddings a checkpoint may hold it too: the same numbers, never read


class Weights:
    """The tensors of a checkpoint, taken one by one; what is left over has no place in the model."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def take(self, name: str) -> nn.Parameter:
        """Return a tensor as a parameter. Raises KeyError with its name."""
        return nn.Parameter(self._tensors.pop(name))

    def take_linear(self, name: str) -> nn.Linear:
        """Return a linear layer, with a bias when the checkpoint has one."""
        bias = self.take(f"{name}.bias") if f"{name}.bias" in self else None
        return make_linear(self.take(f"{name}.weight"), bias)

    def take_norm(self, name: str, epsilon: float) -> RmsNorm:
        """Return a norm."""
        return RmsNorm(self.take(f"{name}.weight"), epsilon)

    def list_left_over(self) -> list[str]:
        """Return the names that nothing has taken."""
        return sorted(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors


def make_linear(weight: nn.Parameter, bias: nn.Parameter | None = None) -> nn.Linear:
    """Return a linear layer of these parameters; none are made and thrown away for it."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear


class RmsNorm(nn.Module):
    """Divide by the root mean square, in fp32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last dimension."""
        # Written out: torch's own rms_norm was ten times slower on a CPU.
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Causal attention inside each segment."""

    def __init__(self, architecture: Architecture, weights: Weights, name: str) -> None:
        super().__init__()
        self.head_size = architecture.head_size
        self.groups = architecture.num_attention_heads // architecture.kv_head_count
        self.q_proj = weights.take_linear(f"{name}.q_proj")
        self.k_proj = weights.take_linear(f"{name}.k_proj")
        self.v_proj = weights.take_linear(f"{name}.v_proj")
        self.o_proj = weights.take_linear(f"{name}.o_proj")
        has_norms = f"{name}.q_norm.weight" in weights  # Qwen3: each head, before it is turned
        epsilon = architecture.rms_norm_eps
        self.q_norm = weights.take_norm(f"{name}.q_norm", epsilon) if has_norms else nn.Identity()
        self.k_norm = weights.take_norm(f"{name}.k_norm", epsilon) if has_norms else nn.Identity()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], segments: list[int]) -> Tensor:
        """Map [tokens, width] to [tokens, width]; no token sees a later one, or one of another segment."""
        heads = (len(x), -1, self.head_size)  # [tokens, heads, size]
        query = rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(0, 1), rotation)  # [heads, tokens, size]
        key = rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(0, 1), rotation)
        value = self.v_proj(x).view(heads).transpose(0, 1)
        if self.groups > 1:  # scaled_dot_product_attention can do this itself, half as fast on a CPU
            key = key.repeat_interleave(self.groups, dim=0)
            value = value.repeat_interleave(self.groups, dim=0)
        parts = zip(*(torch.split(tensor[None], segments, dim=2) for tensor in (query, key, value)), strict=True)
        attended = [functional.scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in parts]
        joined = torch.cat([part[0].transpose(0, 1) for part in attended])  # [tokens, heads, size]
        projected: Tensor = self.o_proj(joined.view(len(x), -1))
        return projected


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + half) of a head, [heads, tokens, size], by its position's angle."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class Mlp(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.gate_proj = weights.take_linear(f"{name}.gate_proj")
        self.up_proj = weights.take_linear(f"{name}.up_proj")
        self.down_proj = weights.take_linear(f"{name}.down_proj")

    def forward(self, x: Tensor) -> Tensor:
        """Map each token by itself."""
        down: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class Block(nn.Module):
    """One layer: attention, then MLP, each behind a norm and beside a residual."""

    def __init__(self, architecture: Architecture, weights: Weights, name: str) -> None:
        super().__init__()
        epsilon = architecture.rms_norm_eps
        self.input_layernorm = weights.take_norm(f"{name}.input_layernorm", epsilon)
        self.self_attn = Attention(architecture, weights, f"{name}.self_attn")
        self.post_attention_layernorm = weights.take_norm(f"{name}.post_attention_layernorm", epsilon)
        self.mlp = Mlp(weights, f"{name}.mlp")

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], segments: list[int]) -> Tensor:
        """Map [tokens, width] to [tokens, width]."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, segments)
        after: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return after


class Trunk(nn.Module):
    """Everything but the output layer: from tokens to hidden states."""

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        super().__init__()
        self.frequencies = architecture.rope.make_frequencies(architecture.head_size)
        table = weights.take("model.embed_tokens.weight")
        rows, width = table.shape
        self.embed_tokens = nn.Embedding(rows, width, _weight=table)
        self.layers = nn.ModuleList(
            Block(architecture, weights, f"model.layers.{number}") for number in range(architecture.num_hidden_layers)
        )
        self.norm = weights.take_norm("model.norm", architecture.rms_norm_eps)
        self.bytes_a_token = ACTIVATIONS_A_WIDTH * width * len(self.layers) * table.dtype.itemsize

    def forward(self, input_ids: Tensor, position_ids: Tensor, segments: list[int]) -> Tensor:
        """Map [tokens] to [tokens, width]."""
        x: Tensor = self.embed_tokens(input_ids)  # [tokens, width]
        angles = position_ids[:, None].float() * self.frequencies.to(x.device)  # [tokens, size / 2], in fp32
        angles = torch.cat((angles, angles), dim=-1)
        rotation = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        held_bytes = len(input_ids) * self.bytes_a_token
        recomputes = torch.is_grad_enabled() and held_bytes > ACTIVATION_BYTES[x.device.type]
        for block in self.layers:
            if recomputes:
                x = checkpoint(block, x, rotation, segments, use_reentrant=False)
            else:
                x = block(x, rotation, segments)
        normed: Tensor = self.norm(x)
        return normed


class Decoder(nn.Module):
    """The whole model. ``forward`` ends at the hidden states; the losses take ``lm_head`` for those they need."""

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        super().__init__()
        self.model = Trunk(architecture, weights)
        is_tied = architecture.tie_word_embeddings
        table = self.model.embed_tokens.get_parameter("weight")
        self.lm_head = make_linear(table) if is_tied else weights.take_linear("lm_head")

    def forward(self, input_ids: Tensor, position_ids: Tensor, segments: list[int]) -> Tensor:
        """Return the hidden states [tokens, width] of ``input_ids`` [tokens], whose rows have these lengths."""
        hidden: Tensor = self.model(input_ids, position_ids, segments)
        return hidden
