from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from luthier.catalog import folders
from luthier.catalog.refusal import FetchRefused


def refuse(folder) -> FetchRefused:
    with pytest.raises(FetchRefused) as caught:
        folders.check_folder(folder)
    assert caught.value.hint
    return caught.value


def shard(folder):
    """Cut the one weight file into two with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {}
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, folder / file)
        files |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_check_when_weights_are_pickled_names_file_and_way_out(model_folder):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refusal = refuse(model_folder)
    assert refusal.code == "model_weights_pickled"
    assert "pytorch_model.bin" in refusal.message
    assert "save_pretrained" in refusal.hint


def test_check_when_there_are_pickles_beside_safetensors_leaves_them(model_folder):
    (model_folder / "optimizer.pt").write_bytes(b"\x80\x04")
    assert "optimizer.pt" not in folders.list_files(model_folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_check_when_model_brings_code_refuses(model_folder, edit_json, name):
    edit_json(model_folder / name, auto_map={"AutoModelForCausalLM": "modeling_acme.AcmeForCausalLM"})
    refusal = refuse(model_folder)
    assert refusal.code == "model_needs_code"
    assert name in refusal.message


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], [], None, ["LlamaForCausalLM", "Other"], "Llama"])
def test_check_when_architecture_is_not_supported_names_those_that_are(model_folder, edit_json, architectures):
    edit_json(model_folder / "config.json", architectures=architectures)
    refusal = refuse(model_folder)
    assert refusal.code == "model_architecture_unsupported"
    assert "LlamaForCausalLM" in refusal.hint


def test_check_when_model_type_is_of_another_architecture_refuses(model_folder, edit_json):
    edit_json(model_folder / "config.json", model_type="gpt2")
    refusal = refuse(model_folder)
    assert refusal.code == "model_architecture_unsupported"
    assert "gpt2" in refusal.message


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.4.mlp.up_proj.weight"])
def test_check_when_a_weight_has_no_place_names_it(model_folder, name):
    weights = load_file(model_folder / "model.safetensors")
    save_file(weights | {name: weights["model.norm.weight"]}, model_folder / "model.safetensors")
    refusal = refuse(model_folder)
    assert refusal.code == "model_weights_mismatch"
    assert name in refusal.message


def test_check_when_tied_embeddings_are_stored_twice_takes_them(model_folder, tiny):
    weights = load_file(model_folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    save_file(weights, model_folder / "model.safetensors")
    assert folders.check_folder(model_folder) == folders.check_folder(tiny)


def test_check_when_rotary_frequencies_were_saved_leaves_them(model_folder, tiny):
    weights = load_file(model_folder / "model.safetensors")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32)}
    save_file(weights | buffer, model_folder / "model.safetensors")
    assert folders.check_folder(model_folder) == folders.check_folder(tiny)


def test_check_when_weights_are_quantised_refuses(model_folder, edit_json):
    edit_json(model_folder / "config.json", quantization_config={"quant_method": "awq"})
    assert refuse(model_folder).code == "model_quantized"


@pytest.mark.parametrize("size", [0, 7, 100, 4_000_000])
def test_check_when_weights_are_cut_off_refuses(model_folder, size):
    with (model_folder / "model.safetensors").open("r+b") as file:
        file.truncate(size)
    refusal = refuse(model_folder)
    assert refusal.code == "model_weights_damaged"
    assert f"{size} bytes" in refusal.message


def test_check_when_a_weight_is_missing_names_it(model_folder):
    weights = load_file(model_folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, model_folder / "model.safetensors")
    refusal = refuse(model_folder)
    assert refusal.code == "model_weights_incomplete"
    assert "model.layers.2.mlp.up_proj.weight" in refusal.message


def test_check_when_a_weight_has_another_shape_names_it(model_folder, edit_json):
    edit_json(model_folder / "config.json", num_key_value_heads=4)
    refusal = refuse(model_folder)
    assert refusal.code == "model_weights_mismatch"
    assert "k_proj" in refusal.message


def test_check_when_a_weight_is_of_integers_refuses(model_folder):
    weights = load_file(model_folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.int8)
    save_file(weights, model_folder / "model.safetensors")
    assert refuse(model_folder).code == "model_weights_mismatch"


@pytest.mark.parametrize(
    ("name", "code"), [("tokenizer.json", "model_tokenizer_missing"), ("config.json", "model_file_missing")]
)
def test_check_when_a_file_is_missing_names_it(model_folder, name, code):
    (model_folder / name).unlink()
    refusal = refuse(model_folder)
    assert refusal.code == code
    assert name in refusal.message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff{"])
def test_check_when_a_json_file_is_something_else_names_it(model_folder, name, content):
    (model_folder / name).write_bytes(content)
    assert name in refuse(model_folder).message


def test_check_when_config_lacks_a_number_names_the_field(model_folder):
    path = model_folder / "config.json"
    config = json.loads(path.read_text())
    del config["hidden_size"]
    path.write_text(json.dumps(config))
    assert "hidden_size" in refuse(model_folder).message


def test_check_when_tokenizer_knows_more_tokens_than_the_weights_refuses(model_folder):
    document = json.loads((model_folder / "tokenizer.json").read_text())
    document["model"]["vocab"]["extra"] = 259
    (model_folder / "tokenizer.json").write_text(json.dumps(document))
    assert refuse(model_folder).code == "model_tokenizer_mismatch"


def test_check_when_weights_are_in_parts_accepts_them(model_folder, tiny):
    shard(model_folder)
    assert folders.check_folder(model_folder) == folders.check_folder(tiny)
    assert len([name for name in folders.list_files(model_folder) if name.endswith(".safetensors")]) == 2


def test_check_when_a_part_is_missing_names_it(model_folder):
    shard(model_folder)
    (model_folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refuse(model_folder).message


def test_check_when_index_points_outside_the_folder_refuses(model_folder, tmp_path):
    shard(model_folder)
    shutil.copy(model_folder / "model-00001-of-00002.safetensors", tmp_path / "model-secret.safetensors")
    index = model_folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of-00002", "../model-secret"))
    assert refuse(model_folder).code == "model_file_missing"


def test_check_when_there_is_no_template_tells_so(model_folder):
    path = model_folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["chat_template"]
    path.write_text(json.dumps(settings))
    assert not folders.check_folder(model_folder).has_chat_template


def test_check_when_template_is_a_file_reads_what_it_supports(model_folder):
    (model_folder / "chat_template.jinja").write_text("{% if tools %}…{% endif %}{{ message.reasoning_content }}")
    facts = folders.check_folder(model_folder)
    assert (facts.has_chat_template, facts.supports_tools, facts.supports_reasoning) == (True, True, True)


def test_check_when_templates_have_names_reads_the_default(model_folder, edit_json):
    templates = [{"name": "rag", "template": "x"}, {"name": "default", "template": "{{ tools }}"}]
    edit_json(model_folder / "tokenizer_config.json", chat_template=templates)
    assert folders.check_folder(model_folder).supports_tools


@pytest.mark.parametrize(
    ("architecture", "fields", "context"),
    [
        ("MistralForCausalLM", {}, 4096),
        ("MistralForCausalLM", {"sliding_window": None}, 32_768),
        ("MistralForCausalLM", {"sliding_window": 1024}, 1024),
        ("LlamaForCausalLM", {"sliding_window": 1024}, 32_768),
    ],
)
def test_check_when_attention_slides_ends_the_context_at_the_window(
    model_folder, edit_json, architecture, fields, context
):
    kind = architecture.removesuffix("ForCausalLM").lower()
    edit_json(
        model_folder / "config.json",
        architectures=[architecture],
        model_type=kind,
        max_position_embeddings=32_768,
        **fields,
    )
    assert folders.check_folder(model_folder).context_length == context


@pytest.mark.parametrize(
    ("architecture", "missing"), [("Qwen2ForCausalLM", "q_proj.bias"), ("Qwen3ForCausalLM", "q_norm.weight")]
)
def test_check_when_architecture_has_weights_of_its_own_asks_for_them(model_folder, edit_json, architecture, missing):
    edit_json(model_folder / "config.json", architectures=[architecture], model_type=architecture[:5].lower())
    assert missing in refuse(model_folder).message


def test_identify_when_weights_or_configuration_change_gives_another_revision(model_folder, tiny, edit_json):
    before = folders.identify(tiny)
    assert folders.identify(model_folder) == before
    edit_json(model_folder / "config.json", rope_theta=500_000.0)
    after = folders.identify(model_folder)
    assert after.revision != before.revision
    assert after.tokenizer_digest == before.tokenizer_digest


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "special_tokens_map.json"])
def test_identify_when_tokens_change_gives_another_digest(model_folder, tiny, name):
    with (model_folder / name).open("a") as file:
        file.write(" ")
    after = folders.identify(model_folder)
    assert after.revision == folders.identify(tiny).revision
    assert after.tokenizer_digest != folders.identify(tiny).tokenizer_digest
