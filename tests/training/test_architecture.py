"""The catalog takes exactly those models that the trainer can compute."""

import json
import shutil

import msgspec
import pytest

from luthier.catalog import folders
from luthier.catalog.refusal import FetchRefused
from luthier.training.architecture import read_architecture

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({}, None),
        ({"hidden_act": "silu", "attention_dropout": 0.0, "rope_scaling": None}, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, None),
        ({"rope_parameters": {"rope_theta": 1e6, "original_max_position_embeddings": 64, **LLAMA3}}, None),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 1.0}}, None),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
            "rope_type yarn",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type dynamic"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor 0.5",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"attention_dropout": 0.1}, "attention_dropout 0.1"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
    ],
)
def test_model_when_the_trainer_cannot_compute_it_is_refused_by_the_catalog(tiny, tmp_path, fields, refused):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    if refused is None:
        folders.check_folder(folder)
        read_architecture(folder)
        return
    with pytest.raises(FetchRefused, match=refused):
        folders.check_folder(folder)
    with pytest.raises(msgspec.ValidationError):
        read_architecture(folder)
