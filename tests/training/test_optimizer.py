"""AdamW and its fp32 masters against torch's own."""

import pytest
import torch
from torch import nn

from luthier.training.failures import NonFiniteLoss
from luthier.training.optimizer import AdamW


def _make_parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4, dtype=dtype)), nn.Parameter(torch.randn(4, dtype=dtype))]


def _add_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (parameter.float() * torch.randn(parameter.shape, generator=generator)).sum() for parameter in parameters
    )
    loss.backward()


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5, 100.0])
def test_steps_equal_torch_adamw_with_clipping(max_grad_norm):
    ours, theirs = _make_parameters(), _make_parameters()
    our_adamw = AdamW(ours, weight_decay=0.1, max_grad_norm=max_grad_norm)
    groups = [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0.0}]
    their_adamw = torch.optim.AdamW(groups, lr=1.0)
    for step in range(5):
        learning_rate = 0.1 / (step + 1)
        _add_gradients(ours, step)
        _add_gradients(theirs, step)
        their_norm = nn.utils.clip_grad_norm_(theirs, max_grad_norm or float("inf"))
        for group in their_adamw.param_groups:
            group["lr"] = learning_rate
        their_adamw.step()
        their_adamw.zero_grad()
        assert our_adamw.step(learning_rate) == pytest.approx(their_norm.item())
        torch.testing.assert_close([one.data for one in ours], [one.data for one in theirs])


def test_gradients_of_several_passes_add_up():
    once, twice = _make_parameters(), _make_parameters()
    adamws = [AdamW(parameters, weight_decay=0.0, max_grad_norm=0.0) for parameters in (once, twice)]
    (once[0] * 3).sum().backward()
    (twice[0] * 1).sum().backward()
    (twice[0] * 2).sum().backward()
    assert adamws[0].step(0.1) == adamws[1].step(0.1)
    assert torch.equal(once[0], twice[0])


def test_small_steps_when_the_model_is_bf16_are_not_lost():
    parameter = nn.Parameter(torch.ones(3, 4, dtype=torch.bfloat16))
    adamw = AdamW([parameter], weight_decay=0.0, max_grad_norm=0.0)
    for _ in range(100):
        parameter.sum().backward()
        adamw.step(1e-4)  # a bf16 number below 1 is 0.004 from the next
    torch.testing.assert_close(parameter.float(), torch.full((3, 4), 0.99), atol=0.002, rtol=0)


def test_step_when_the_gradient_is_not_finite_changes_nothing():
    parameters = _make_parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    adamw = AdamW(parameters, weight_decay=0.1, max_grad_norm=1.0)
    (parameters[0] * float("inf")).sum().backward()
    with pytest.raises(NonFiniteLoss, match="inf"):
        adamw.step(0.1)
    assert all(torch.equal(*pair) for pair in zip(before, parameters, strict=True))
