"""AdamW in fp32, whatever type the model computes in."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from luthier.training.failures import NonFiniteLoss

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Optimizer:
    """Holds fp32 masters of the trained parameters and their gradients, summed in fp32.

    A parameter that is fp32 already is its own master. A bf16 one gets a master of its own, to which each backward
    pass adds its gradient and from which the parameter is written after each step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, weight_decay: float, max_grad_norm: float) -> None:
        self._max_grad_norm = max_grad_norm
        self._masters: list[Tensor] = []
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        for parameter in parameters:
            self._masters.append(parameter if parameter.dtype == torch.float32 else self._make_master(parameter))
        # Biases and the gains of norms are vectors: pulling them to zero is no regularisation.
        groups = [
            {"params": [master for master in self._masters if master.ndim > 1], "weight_decay": weight_decay},
            {"params": [master for master in self._masters if master.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], betas=BETAS, eps=EPSILON, fused=True
        )

    def _make_master(self, parameter: nn.Parameter) -> Tensor:
        master = parameter.detach().float()
        master.grad = torch.zeros_like(master)
        self._copies.append((parameter, master))

        def take_gradient(one: Tensor) -> None:
            assert master.grad is not None
            assert one.grad is not None
            master.grad += one.grad
            one.grad = None

        parameter.register_post_accumulate_grad_hook(take_gradient)  # type: ignore[no-untyped-call]  # torch's own
        return master

    def step(self, learning_rate: float) -> float:
        """Take one step and forget the gradients; return their norm before clipping.

        Raises NonFiniteLoss before anything is changed when the norm is no finite number.
        """
        gradients = [master.grad for master in self._masters if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm.item()):
            raise NonFiniteLoss(f"the gradient's norm is {norm.item()}", hint="use a lower learning_rate")
        if self._max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self._masters, self._max_grad_norm, norm)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        for gradient in gradients:
            gradient.zero_()
        with torch.no_grad():
            for parameter, master in self._copies:
                parameter.copy_(master)
        return norm.item()
