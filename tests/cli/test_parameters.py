from __future__ import annotations

import pytest
import typer

from luthier.cli.parameters import Scheduler, TrainingType, TrainOnInputs, build_body


def test_build_body_when_nothing_is_given_then_nothing_is_sent():
    assert build_body(model="m", n_epochs=None, lora_r=None) == {"model": "m"}


def test_build_body_when_zero_and_false_are_given_then_they_are_sent():
    assert build_body(packing=False, max_grad_norm=0.0) == {"packing": False, "max_grad_norm": 0.0}


def test_build_body_when_a_lora_option_is_given_then_training_type_is_lora():
    assert build_body(lora_r=4) == {"training_type": {"type": "Lora", "lora_r": 4}}


def test_build_body_when_full_with_a_lora_option_then_both_are_sent_for_the_server_to_refuse():
    body = build_body(training_type=TrainingType.FULL, lora_r=4)
    assert body == {"training_type": {"type": "Full", "lora_r": 4}}


@pytest.mark.parametrize(
    ("choice", "value"), [(TrainOnInputs.AUTO, "auto"), (TrainOnInputs.TRUE, True), (TrainOnInputs.FALSE, False)]
)
def test_build_body_when_train_on_inputs_then_it_is_json_of_its_kind(choice, value):
    assert build_body(train_on_inputs=choice) == {"training_method": {"method": "sft", "train_on_inputs": value}}


def test_build_body_when_scheduler_arguments_then_they_are_nested():
    assert build_body(min_lr_ratio=0.1) == {
        "lr_scheduler": {"lr_scheduler_type": "cosine", "lr_scheduler_args": {"min_lr_ratio": 0.1}}
    }
    assert build_body(lr_scheduler=Scheduler.LINEAR) == {"lr_scheduler": {"lr_scheduler_type": "linear"}}


def test_build_body_when_batch_size_then_a_number_or_max():
    assert build_body(batch_size="max") == {"batch_size": "max"}
    assert build_body(batch_size="16") == {"batch_size": 16}
    with pytest.raises(typer.BadParameter, match="'many'"):
        build_body(batch_size="many")
