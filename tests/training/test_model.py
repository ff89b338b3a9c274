"""Hidden states and losses against transformers' own forward pass, one row at a time."""

import json

import pytest
import torch
import transformers

from luthier.protocol import spec
from luthier.training import decoder, lora, model
from luthier.training.batches import Rows
from luthier.training.failures import BaseModelFault
from training_runs import make_rows, write_tokens

SHAPE = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
BUILDS = {
    "llama": transformers.LlamaConfig(**SHAPE),
    "llama-tied": transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-scaled-rope": transformers.LlamaConfig(**SHAPE, rope_parameters=SCALED_ROPE),
    "mistral": transformers.MistralConfig(**SHAPE, head_dim=16, sliding_window=64),
    "qwen2": transformers.Qwen2Config(**SHAPE),
    "qwen3": transformers.Qwen3Config(**SHAPE, head_dim=16),
}


@pytest.fixture(params=BUILDS)
def folder(request, tmp_path):
    """A small random model of each architecture that the catalog takes."""
    torch.manual_seed(1)
    path = tmp_path / request.param
    module = transformers.AutoModelForCausalLM.from_config(BUILDS[request.param])
    for parameter in module.parameters():  # every bias and every gain counts
        torch.nn.init.normal_(parameter, std=0.2)
    module.save_pretrained(path)
    return path


def _load(folder, place):
    return model.load_model(spec.BaseModel(name="x/y", revision="r", path=str(folder)), place, trains_all=False)


def _sum_losses_alone(folder, rows):
    """The oracle: stock transformers, one row a forward pass, labels masked with -100."""
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = []
    with torch.no_grad():
        for ids, trained in rows:
            labels = [token if is_trained else -100 for token, is_trained in zip(ids, trained, strict=True)]
            out = stock(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
            losses.append(out.loss.item() * sum(trained[1:]))
    return losses


def test_loss_of_packed_rows_equals_each_row_alone_in_transformers(folder, place, tmp_path):
    data = make_rows(6, longest=40)
    rows = Rows(write_tokens(tmp_path / "x.tokens", data), place.device)
    ours = _load(folder, place)
    alone = _sum_losses_alone(folder, data)
    packed = [ours.sum_losses(batch).item() for batch in rows.cut(range(6), max_tokens=10_000)]
    assert packed == [pytest.approx(sum(alone), rel=1e-5)]
    apart = [ours.sum_losses(batch).item() for batch in rows.cut(range(6), max_tokens=1)]
    assert apart == [pytest.approx(loss, rel=1e-5) for loss in alone]


def test_gradient_when_a_row_is_long_is_the_same_by_computing_twice(tiny, place, tmp_path, monkeypatch):
    rows = Rows(write_tokens(tmp_path / "x.tokens", make_rows(3)), place.device)
    gradients = []
    for limit_bytes in (10**10, 0):
        monkeypatch.setitem(decoder.ACTIVATION_BYTES, "cpu", limit_bytes)
        torch.manual_seed(0)
        ours = _load(tiny, place)
        adapted = lora.attach(ours.module, spec.Lora(r=4, alpha=8.0, dropout=0.2))
        ours.module.train()
        (batch,) = rows.cut(range(3), max_tokens=10_000)
        ours.sum_losses(batch).backward()
        gradients.append([layer.lora_b.grad.clone() for layer in adapted.values()])
    assert any(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_parameters_are_counted_as_transformers_counts_them(tiny, place):
    ours = _load(tiny, place)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    assert ours.param_count == ours.count_trained() == stock.num_parameters()
    lora.attach(ours.module, spec.Lora(r=4, alpha=8.0))
    assert ours.count_trained() == 4 * 4 * (128 + 128 + 2 * (128 + 64) + 128 + 128 + 3 * (128 + 512))


def test_load_when_weights_are_missing_says_which_model(tiny, place, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with pytest.raises(BaseModelFault, match="x/y"):
        _load(tmp_path, place)


def test_load_when_the_file_is_cut_short_is_the_base_models_fault(tiny, place, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    weights = (tiny / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BaseModelFault, match="x/y"):
        _load(tmp_path, place)


def test_load_when_a_weight_is_missing_never_trains_on_random_numbers(tiny, place, tmp_path):
    config = json.loads((tiny / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    with pytest.raises(BaseModelFault, match=r"model\.layers\.4"):
        _load(tmp_path, place)


def test_load_when_the_architecture_is_unknown_names_it(tiny, place, tmp_path):
    config = json.loads((tiny / "config.json").read_text()) | {"architectures": ["NoSuchForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelFault, match="NoSuchForCausalLM"):
        _load(tmp_path, place)
