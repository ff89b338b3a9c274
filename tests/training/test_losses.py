"""The chunked loss against torch's own, with gradients."""

import pytest
import torch
from torch.nn import functional

from luthier.training import losses


@pytest.mark.parametrize("count", [1, 5, 16])
@pytest.mark.parametrize("trains_head", [False, True])
def test_sum_equals_torch_over_several_chunks(monkeypatch, count, trains_head):
    monkeypatch.setattr(losses, "CHUNK_TOKENS", 5)
    torch.manual_seed(0)
    hidden = torch.randn(count, 8, requires_grad=True)
    weight = torch.randn(11, 8, requires_grad=trains_head)
    targets = torch.randint(0, 11, (count,))
    ours = losses.sum_cross_entropy(hidden, weight, targets) / 3
    ours.backward()
    grads = [hidden.grad.clone(), None if weight.grad is None else weight.grad.clone()]
    hidden.grad = weight.grad = None
    theirs = functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum") / 3
    theirs.backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grads[0], hidden.grad)
    if trains_head:
        torch.testing.assert_close(grads[1], weight.grad)


def test_sum_when_no_gradient_is_wanted_keeps_none():
    hidden, weight = torch.randn(4, 8), torch.randn(11, 8)
    assert not losses.sum_cross_entropy(hidden, weight, torch.tensor([1, 2, 3, 4])).requires_grad


def test_sum_when_weights_are_tied_adds_both_gradients():
    table = torch.randn(11, 8, requires_grad=True)
    hidden = table[torch.tensor([1, 2, 3])] * 2
    targets = torch.tensor([4, 5, 6])
    losses.sum_cross_entropy(hidden, table, targets).backward()
    ours, table.grad = table.grad.clone(), None
    functional.cross_entropy((table[torch.tensor([1, 2, 3])] * 2) @ table.t(), targets, reduction="sum").backward()
    torch.testing.assert_close(ours, table.grad)
