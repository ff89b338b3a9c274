"""AdamW in fp32, whatever type the model computes in."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from luthier.training.failures import NonFiniteLoss

BETA_1, BETA_2 = 0.9, 0.999
EPSILON = 1e-8


class Master:
    """A trained parameter in fp32 with its gradient, summed in fp32, and its moments.

    A parameter that is fp32 already is its own master. A bf16 one gets a copy, to which each backward pass adds its
    gradient and from which it is written after each step: small steps vanish in bf16.
    """

    def __init__(self, parameter: nn.Parameter, weight_decay: float) -> None:
        self._parameter = parameter
        self.value = parameter.detach().float()  # the same memory when it is fp32
        self.gradient = torch.zeros_like(self.value)
        self._mean = torch.zeros_like(self.value)
        self._square = torch.zeros_like(self.value)
        # Biases and the gains of norms are vectors: pulling them to zero is no regularisation.
        self._weight_decay = weight_decay if parameter.ndim > 1 else 0.0
        parameter.register_post_accumulate_grad_hook(self._take_gradient)  # type: ignore[no-untyped-call]  # torch's own

    def _take_gradient(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        self.gradient += parameter.grad
        parameter.grad = None

    def measure_weights(self) -> Tensor:
        """Return the norm of the parameter, in fp32."""
        norm: Tensor = self._parameter.norm(dtype=torch.float32)
        return norm

    def step(self, learning_rate: float, number: int) -> None:
        """Take step ``number`` (from 1) and forget the gradient."""
        self.value.mul_(1 - learning_rate * self._weight_decay)
        self._mean.lerp_(self.gradient, 1 - BETA_1)
        self._square.mul_(BETA_2).addcmul_(self.gradient, self.gradient, value=1 - BETA_2)
        spread = (self._square / (1 - BETA_2**number)).sqrt_().add_(EPSILON)
        self.value.addcdiv_(self._mean, spread, value=-learning_rate / (1 - BETA_1**number))
        self.gradient.zero_()
        if self._parameter.dtype != torch.float32:
            self._parameter.copy_(self.value)


class AdamW:
    """Loshchilov and Hutter 2019 (arXiv:1711.05101). torch's own imports its compiler first, which takes seconds."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, weight_decay: float, max_grad_norm: float) -> None:
        self._masters = [Master(parameter, weight_decay) for parameter in parameters]
        self._max_grad_norm = max_grad_norm
        self._steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        """Take one step and forget the gradients; return their norm before clipping.

        Raises NonFiniteLoss before anything is changed when the norm is no finite number.
        """
        norm = self._measure_norm()
        if not math.isfinite(norm):
            raise NonFiniteLoss(f"the gradient's norm is {norm}", hint="use a lower learning_rate")
        self._steps += 1
        scale = self._max_grad_norm / (norm + 1e-6)  # as torch's clip_grad_norm_ has it
        for master in self._masters:
            if self._max_grad_norm and scale < 1:
                master.gradient *= scale
            master.step(learning_rate, self._steps)
        return norm

    @torch.no_grad()
    def require_finite_weights(self) -> None:
        """Raise NonFiniteLoss when the last step left a weight that is no finite number.

        No loss tells of it before the next step, and after the last one there is none.
        """
        norms = torch.stack([master.measure_weights() for master in self._masters])
        if not bool(norms.isfinite().all()):
            raise NonFiniteLoss(
                "a trained weight is no finite number after the last step",
                hint="use a lower learning_rate or weight_decay",
            )

    def _measure_norm(self) -> float:
        norms: list[Tensor] = [master.gradient.norm() for master in self._masters]
        return float(torch.stack(norms).norm())
