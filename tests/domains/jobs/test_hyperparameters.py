from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.catalog import builtin_models
from luthier.catalog.limits import derive_limits
from luthier.errors import InvalidRequest
from luthier.jobs import hyperparameters
from luthier.jobs.request import JobRequest
from luthier.protocol.spec import Full, Lora, Schedule

LIMITS = derive_limits(builtin_models.TINY, builtin_models.FACTS[builtin_models.TINY])
LORA_ONLY = derive_limits(
    "huge", msgspec.structs.replace(builtin_models.FACTS[builtin_models.TINY], param_count=10**11)
)


def resolve(limits=LIMITS, **fields):
    return hyperparameters.resolve(JobRequest.from_body({"model": "m", "training_file": "file-1", **fields}), limits)


def get_problems(limits=LIMITS, **fields) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        resolve(limits, **fields)
    return {problem["param"]: problem["message"] for problem in caught.value.details}


def test_resolve_when_nothing_is_sent_fills_in_the_documented_defaults():
    resolved = resolve()
    assert resolved.n_epochs == 1
    assert resolved.n_checkpoints == 1
    assert resolved.n_evals == 0
    assert resolved.batch_size == LIMITS.resolve_max_batch(512)
    assert resolved.gradient_accumulation_steps == LIMITS.default_gradient_accumulation_steps
    assert resolved.learning_rate == 1e-5
    assert resolved.schedule == Schedule(kind="cosine", min_lr_ratio=0.0, num_cycles=0.5, warmup_ratio=0.0)
    assert resolved.max_grad_norm == 1.0
    assert resolved.weight_decay == 0.0
    assert resolved.random_seed == 42
    assert resolved.packing is True
    assert resolved.max_seq_length == 512
    rank = LIMITS.lora_training.default_rank
    assert resolved.training_type == Lora(r=rank, alpha=2.0 * rank, dropout=0.0, target_modules=("all-linear",))
    assert resolved.train_on_inputs == "auto"


def test_resolve_when_everything_is_sent_keeps_it():
    resolved = resolve(
        validation_file="file-2",
        suffix="support.v2_final-1",
        n_epochs=3,
        n_checkpoints=2,
        n_evals=4,
        batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=0.001,
        lr_scheduler={"lr_scheduler_type": "cosine", "lr_scheduler_args": {"min_lr_ratio": 0.1, "num_cycles": 1.5}},
        warmup_ratio=0.1,
        max_grad_norm=0,
        weight_decay=0.01,
        random_seed=7,
        packing=False,
        max_seq_length=256,
        training_type={
            "type": "Lora",
            "lora_r": 16,
            "lora_alpha": 8,
            "lora_dropout": 0.05,
            "lora_trainable_modules": "q_proj, v_proj",
        },
        training_method={"method": "sft", "train_on_inputs": True},
    )
    assert msgspec.to_builtins(resolved) == {
        "n_epochs": 3,
        "n_checkpoints": 2,
        "n_evals": 4,
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.001,
        "schedule": {"kind": "cosine", "min_lr_ratio": 0.1, "num_cycles": 1.5, "warmup_ratio": 0.1},
        "max_grad_norm": 0.0,
        "weight_decay": 0.01,
        "random_seed": 7,
        "packing": False,
        "max_seq_length": 256,
        "training_type": {
            "type": "Lora",
            "r": 16,
            "alpha": 8.0,
            "dropout": 0.05,
            "target_modules": ("q_proj", "v_proj"),
        },
        "train_on_inputs": True,
    }


def test_resolve_when_client_sends_what_it_always_sends_accepts_it():
    # The official v1 client's body when only a model and a file are named, and full training is asked for.
    resolved = resolve(
        validation_file="",
        n_evals=0,
        n_checkpoints=1,
        batch_size="max",
        lr_scheduler={"lr_scheduler_type": "cosine", "lr_scheduler_args": {"min_lr_ratio": 0.0, "num_cycles": 0.5}},
        training_type={"type": "Full"},
        training_method={"method": "sft", "train_on_inputs": "auto"},
        early_stopping_enabled=False,
        from_checkpoint="",
        suffix="",
        wandb_key="",
        multimodal_params={"train_vision": False},
    )
    assert resolved.training_type == Full()


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"n_epochs": 0}, "n_epochs", "from 1 to 20: 0"),
        ({"n_epochs": 21}, "n_epochs", "from 1 to 20: 21"),
        ({"n_epochs": "3"}, "n_epochs", 'a whole number from 1 to 20: "3"'),
        ({"n_epochs": True}, "n_epochs", "a whole number from 1 to 20: true"),
        ({"n_epochs": 1.5}, "n_epochs", "a whole number"),
        ({"n_checkpoints": 0}, "n_checkpoints", "from 1 to 20"),
        ({"n_evals": 101, "validation_file": "f"}, "n_evals", "from 0 to 100: 101"),
        ({"n_evals": 1}, "n_evals", "needs a validation_file"),
        ({"n_evals": 1, "validation_file": ""}, "n_evals", "needs a validation_file"),
        ({"validation_file": 3}, "validation_file", "must be a string: 3"),
        ({"batch_size": 0}, "batch_size", "from 1 to 128: 0"),
        ({"batch_size": 129}, "batch_size", "from 1 to 128: 129"),
        ({"batch_size": "big"}, "batch_size", 'must be "max" or a whole number from 1 to 128'),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps", "from 0 to 1024"),
        ({"learning_rate": 0}, "learning_rate", "from 1e-08 to 0.01: 0"),
        ({"learning_rate": 0.5}, "learning_rate", "from 1e-08 to 0.01: 0.5"),
        ({"learning_rate": "1e-5"}, "learning_rate", "must be a number from"),
        ({"learning_rate": float("nan")}, "learning_rate", "from 1e-08"),
        ({"warmup_ratio": 1.01}, "warmup_ratio", "from 0 to 1"),
        ({"max_grad_norm": -1}, "max_grad_norm", "from 0 to 1e+06"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm", "from 0 to 1e+06"),
        ({"max_grad_norm": 1e7}, "max_grad_norm", "from 0 to 1e+06"),
        ({"weight_decay": -0.1}, "weight_decay", "from 0 to 1: -0.1"),
        ({"weight_decay": 1.5}, "weight_decay", "from 0 to 1: 1.5"),
        ({"weight_decay": 10**400}, "weight_decay", "from 0 to 1"),
        ({"random_seed": -1}, "random_seed", "from 0 to 4294967295"),
        ({"packing": 1}, "packing", "must be true or false: 1"),
        ({"max_seq_length": 513}, "max_seq_length", "from 32 to 512: 513"),
        ({"max_seq_length": 31}, "max_seq_length", "from 32 to 512: 31"),
        ({"suffix": "x" * 65}, "suffix", "at most 64 characters"),
        ({"suffix": "a/b"}, "suffix", "letters, digits"),
        ({"suffix": 5}, "suffix", "must be a string"),
        ({"training_file": None}, "training_file", "training_file is required"),
        ({"training_file": ""}, "training_file", "training_file is required"),
        ({"training_type": "Lora"}, "training_type", 'must be an object: "Lora"'),
        ({"training_type": {"type": "lora"}}, "training_type.type", 'must be Lora or Full: "lora"'),
        ({"training_type": {"type": "Lora", "lora_r": 65}}, "training_type.lora_r", "from 1 to 64: 65"),
        ({"training_type": {"type": "Lora", "lora_alpha": 0}}, "training_type.lora_alpha", "from 1 to"),
        ({"training_type": {"type": "Lora", "lora_alpha": 1.5}}, "training_type.lora_alpha", "a whole number"),
        ({"training_type": {"type": "Lora", "lora_dropout": 1}}, "training_type.lora_dropout", "at least 0 and below 1: 1"),
        (
            {"training_type": {"type": "Lora", "lora_trainable_modules": "q_proj,w_up"}},
            "training_type.lora_trainable_modules",
            'does not have: "w_up"',
        ),
        (
            {"training_type": {"type": "Lora", "lora_trainable_modules": "all-linear,q_proj"}},
            "training_type.lora_trainable_modules",
            'does not have: "all-linear"',
        ),
        ({"training_type": {"type": "Full", "lora_r": 8}}, "training_type.lora_r", "no meaning with type Full"),
        ({"training_method": {"method": "ppo"}}, "training_method.method", "must be sft or dpo"),
        ({"training_method": {"method": "dpo"}}, "training_method.method", "does not offer DPO"),
        ({"training_method": {"method": "sft", "dpo_beta": 0.1}}, "training_method.dpo_beta", "no meaning with method sft"),
        (
            {"training_method": {"method": "sft", "train_on_inputs": "yes"}},
            "training_method.train_on_inputs",
            'must be "auto", true or false',
        ),
        ({"lr_scheduler": {"lr_scheduler_type": "step"}}, "lr_scheduler.lr_scheduler_type", "must be cosine or linear"),
        (
            {"lr_scheduler": {"lr_scheduler_args": {"min_lr_ratio": 2}}},
            "lr_scheduler.lr_scheduler_args.min_lr_ratio",
            "from 0 to 1: 2",
        ),
        (
            {"lr_scheduler": {"lr_scheduler_args": {"num_cycles": 0}}},
            "lr_scheduler.lr_scheduler_args.num_cycles",
            "above 0 and at most 1000: 0",
        ),
        (
            {"lr_scheduler": {"lr_scheduler_args": {"num_cycles": 1e308}}},
            "lr_scheduler.lr_scheduler_args.num_cycles",
            "above 0 and at most 1000: 1e+308",
        ),
        (
            {"lr_scheduler": {"lr_scheduler_type": "linear", "lr_scheduler_args": {"num_cycles": 1}}},
            "lr_scheduler.lr_scheduler_args.num_cycles",
            "no meaning for a linear schedule",
        ),
        ({"from_checkpoint": "ft-1:10"}, "from_checkpoint", "does not offer starting from a checkpoint"),
        ({"from_hf_model": "a/b"}, "from_hf_model", "does not offer"),
        ({"hf_output_repo_name": "a/b"}, "hf_output_repo_name", "does not offer uploading"),
        ({"wandb_api_key": "secret"}, "wandb_api_key", "does not offer Weights & Biases"),
        ({"wandb_name": "run"}, "wandb_name", "does not offer Weights & Biases"),
        ({"early_stopping_enabled": True}, "early_stopping_enabled", "does not offer early stopping"),
        ({"multimodal_params": {"train_vision": True}}, "multimodal_params.train_vision", "does not offer training on images"),
    ],
)  # fmt: skip
def test_resolve_when_a_value_is_wrong_names_field_value_and_range(fields, param, text):
    problems = get_problems(**fields)
    assert list(problems) == [param]
    assert text in problems[param]


def test_resolve_when_many_values_are_wrong_tells_all_of_them_at_once():
    with pytest.raises(InvalidRequest) as caught:
        resolve(n_epochs=0, learning_rate=1, training_type={"type": "Lora", "lora_r": 0}, suffix="a b")
    error = caught.value
    assert [problem["param"] for problem in error.details] == [
        "suffix",
        "training_type.lora_r",
        "n_epochs",
        "learning_rate",
    ]
    assert error.param == "suffix"
    assert error.message.startswith("4 problems: ")
    for problem in error.details:
        assert problem["message"] in error.message


def test_resolve_when_a_secret_is_sent_never_repeats_it():
    with pytest.raises(InvalidRequest) as caught:
        resolve(wandb_key="wandb-secret-1", hf_api_token="hf-secret-2")
    told = json.dumps([caught.value.message, caught.value.hint, caught.value.details])
    assert "secret" not in told
    assert [problem["param"] for problem in caught.value.details] == ["hf_api_token", "wandb_key"]


def test_resolve_when_full_training_is_too_large_says_so():
    assert (
        "too large for full training" in get_problems(LORA_ONLY, training_type={"type": "Full"})["training_type.type"]
    )


def test_resolve_when_batch_size_is_max_depends_on_the_sequence_length_only():
    assert resolve(batch_size="max", max_seq_length=512).batch_size == LIMITS.resolve_max_batch(512)
    assert resolve(batch_size="max", max_seq_length=64).batch_size == LIMITS.resolve_max_batch(64)


def test_resolve_when_accumulation_is_zero_takes_the_models_default():
    limits = msgspec.structs.replace(LIMITS, default_gradient_accumulation_steps=4)
    assert resolve(limits, gradient_accumulation_steps=0).gradient_accumulation_steps == 4


def test_resolve_when_rank_is_named_without_alpha_doubles_it():
    assert resolve(training_type={"type": "Lora", "lora_r": 4}).training_type.alpha == 8


def test_resolve_when_whole_numbers_come_as_floats_takes_them():
    assert resolve(n_epochs=2.0).n_epochs == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=12), inner, max_size=2),
    max_leaves=5,
)
field_names = st.sampled_from([name for name in JobRequest.__dataclass_fields__ if name != "unknown_fields"])


@given(body=st.dictionaries(field_names, json_values, max_size=6))
def test_resolve_of_any_json_gives_hyperparameters_within_limits_or_problems_with_names(body):
    request = replace(JobRequest.from_body(body), training_file="file-1")
    try:
        resolved = hyperparameters.resolve(request, LIMITS)
    except InvalidRequest as error:
        named = {problem["param"].partition(".")[0] for problem in error.details}
        told = bool(error.details)
    else:
        named, told = set(), True
        assert 1 <= resolved.n_epochs <= LIMITS.max_num_epochs
        assert 1 <= resolved.batch_size <= LIMITS.lora_training.max_batch_size
        assert LIMITS.min_max_seq_length <= resolved.max_seq_length <= LIMITS.max_seq_length_sft
        assert msgspec.json.decode(msgspec.json.encode(resolved), type=type(resolved)) == resolved
    assert told
    assert named <= set(body)


def test_from_body_names_what_it_does_not_know_at_every_level():
    request = JobRequest.from_body(
        {
            "model": "m",
            "colour": 1,
            "training_type": {"type": "Lora", "rank": 3},
            "lr_scheduler": {"lr_scheduler_args": {"num_cycles": 1, "warmth": 2}},
        }
    )
    assert request.unknown_fields == ("colour", "lr_scheduler.lr_scheduler_args.warmth", "training_type.rank")
    assert request.lr_scheduler == {"lr_scheduler_args": {"num_cycles": 1}}


def test_list_sent_leaves_out_what_was_not_sent_and_hides_secrets():
    request = JobRequest.from_body({"model": "m", "n_epochs": 0, "wandb_key": "k", "hf_api_token": "t"})
    assert request.list_sent() == {"model": "m", "n_epochs": 0, "wandb_key": "…", "hf_api_token": "…"}


def test_unknown_names_are_shown_harmless_and_bounded():
    body = {f"f{number:02d}": 1 for number in range(22)} | {"a\x1b[31m" + "x" * 100: 1}
    text = JobRequest.from_body(body).describe_unknown()
    assert text.startswith("a\\u001b[31mxxx")
    assert text.endswith("f18 and 3 more")
    assert len(text) < 200


def test_list_sent_holds_no_more_of_an_object_than_is_known():
    request = JobRequest.from_body({"training_type": {"type": "Lora", "ballast": "x" * 1000}})
    assert request.list_sent() == {"training_type": {"type": "Lora"}}
