"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), equal to PEFT's in initialisation, arithmetic and names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.protocol.spec import Lora
from luthier.training.failures import HyperparametersFault

ALL_LINEAR = "all-linear"


class LoraLinear(nn.Module):
    """A frozen linear layer with an adapter beside it: ``W x + alpha / r · B A dropout(x)``.

    A and B are kept in fp32, whatever type the layer computes in: the optimizer's small steps would vanish in bf16.
    """

    def __init__(self, base: nn.Linear, lora: Lora) -> None:
        super().__init__()
        self.base = base
        self.scale = lora.alpha / lora.r
        self.dropout = lora.dropout
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.empty(lora.r, base.in_features, device=device, dtype=torch.float32))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, lora.r, device=device, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # with B zero, training starts at the base model

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        base: Tensor = self.base(x)
        dropped = functional.dropout(x, self.dropout, self.training) if self.dropout else x
        low = functional.linear(dropped, self.lora_a.to(x.dtype))  # [..., r]
        flat = torch.addmm(  # adds to the base's output in one pass
            base.view(-1, base.shape[-1]),
            low.view(-1, low.shape[-1]),
            self.lora_b.to(x.dtype).t(),
            alpha=self.scale,
        )
        return flat.view(base.shape)

    def merge(self, weight: Tensor) -> Tensor:
        """Return ``weight``, the layer's as it is stored, with the adapter added in fp32, in its own type."""
        delta = (self.lora_b @ self.lora_a) * self.scale
        return (weight.to(delta) + delta).to(weight.dtype)


def attach(model: nn.Module, lora: Lora) -> dict[str, LoraLinear]:
    """Freeze the model and adapt the layers that ``target_modules`` names; return them by their place in the model.

    Raises HyperparametersFault when a name is not that of a linear layer.
    """
    model.requires_grad_(requires_grad=False)
    linears = find_linears(model)
    available = {name.rpartition(".")[2] for name in linears}
    wanted = available if ALL_LINEAR in lora.target_modules else set(lora.target_modules)
    if unknown := sorted(wanted - available):
        message = f"the base model has no linear layer of this name: {', '.join(unknown)}"
        raise HyperparametersFault(message, hint=f"use all-linear, or names out of: {', '.join(sorted(available))}")
    adapted = {}
    for name, linear in linears.items():
        parent, _, last = name.rpartition(".")
        if last in wanted:
            adapted[name] = LoraLinear(linear, lora)
            setattr(model.get_submodule(parent), last, adapted[name])
    return adapted


def find_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return every linear layer but the output layer, by its place in the model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] != "lm_head"
    }
