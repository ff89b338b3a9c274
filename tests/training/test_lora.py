"""The adapter's layers against PEFT's."""

import peft
import pytest
import torch
import transformers

from luthier.protocol.spec import BaseModel, Lora
from luthier.training import lora
from luthier.training.failures import HyperparametersFault
from luthier.training.model import load_model


@pytest.fixture
def module(tiny, place):
    return load_model(BaseModel(name="luthier/tiny", revision="r", path=str(tiny)), place, trains_all=False).module


def test_attach_when_fresh_changes_nothing_and_starts_as_peft_does(module, tiny):
    adapted = lora.attach(module, Lora(r=4, alpha=8.0))
    stock = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    theirs = dict(peft.get_peft_model(stock, config).named_modules())
    assert set(adapted) == {
        name.removeprefix("base_model.model.")
        for name, layer in theirs.items()
        if isinstance(layer, peft.tuners.lora.Linear)
    }
    for name, layer in adapted.items():
        their_a = theirs[f"base_model.model.{name}"].lora_A["default"].weight
        bound = their_a.abs().max() * 1.05  # uniform within ±sqrt(1/in), both of them
        assert layer.lora_a.abs().max() <= bound
        assert layer.lora_a.std().item() == pytest.approx(their_a.std().item(), rel=0.2)
        assert not layer.lora_b.any()


@pytest.mark.parametrize(("r", "alpha"), [(4, 8.0), (2, 3.0)])
def test_forward_equals_peft(r, alpha):
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5)
    ours = lora.LoraLinear(base, Lora(r=r, alpha=alpha))
    torch.nn.init.normal_(ours.lora_b)
    holder = torch.nn.Sequential(torch.nn.Linear(6, 5))
    holder[0].load_state_dict(base.state_dict())
    theirs = peft.get_peft_model(holder, peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=["0"]))
    layer = theirs.base_model.model[0]
    layer.lora_A["default"].weight.data.copy_(ours.lora_a)
    layer.lora_B["default"].weight.data.copy_(ours.lora_b)
    x = torch.randn(7, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_merge_equals_the_layer_and_keeps_the_type():
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5, bias=False)
    layer = lora.LoraLinear(base, Lora(r=2, alpha=3.0))
    torch.nn.init.normal_(layer.lora_b)
    x = torch.randn(7, 6)
    torch.testing.assert_close(x @ layer.merge(base.weight).t(), layer(x))
    assert layer.merge(base.weight.bfloat16()).dtype == torch.bfloat16


def test_dropout_when_evaluating_is_off_and_when_training_is_on():
    torch.manual_seed(0)
    layer = lora.LoraLinear(torch.nn.Linear(64, 5), Lora(r=2, alpha=4.0, dropout=0.5))
    torch.nn.init.normal_(layer.lora_b)
    x = torch.randn(7, 64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_attach_when_names_are_given_adapts_those_alone(module):
    adapted = lora.attach(module, Lora(r=4, alpha=8.0, target_modules=("q_proj", "down_proj")))
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "down_proj"}
    assert len(adapted) == 8
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert len(trained) == 16
    assert all("lora_" in name for name in trained)


def test_attach_when_a_name_is_unknown_lists_those_that_are_there(module):
    with pytest.raises(HyperparametersFault, match="c_attn") as caught:
        lora.attach(module, Lora(r=4, alpha=8.0, target_modules=("q_proj", "c_attn")))
    assert "gate_proj" in caught.value.hint
