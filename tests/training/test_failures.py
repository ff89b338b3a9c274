"""What goes wrong, and how it is told."""

import errno

import pytest
import torch

from luthier import machine
from luthier.datasets.tokens import TokensCorrupt
from luthier.protocol import layout, spec
from luthier.training import failures
from luthier.training.failures import (
    BaseModelFault,
    DataFault,
    HyperparametersFault,
    MemoryTooSmall,
    NonFiniteLoss,
)
from training_runs import make_rows

ROWS = make_rows(4)


def test_tokens_when_cut_short_are_found_before_the_model_is_loaded(make_run):
    run = make_run(ROWS)
    path = run.path / layout.TRAIN_TOKENS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TokensCorrupt):
        run.train()
    assert [type(message).__name__ for message in run.read()] == ["Started"]


def test_tokens_when_there_are_no_rows_are_the_datas_fault(make_run):
    with pytest.raises(DataFault, match="train"):
        make_run([]).train()


def test_validation_when_there_are_no_rows_is_the_datas_fault(make_run):
    with pytest.raises(DataFault, match="validation"):
        make_run(ROWS, validation=[], n_evals=1).train()


def test_loss_when_it_explodes_names_the_way_out(make_run):
    with pytest.raises(NonFiniteLoss) as caught:
        make_run(ROWS, learning_rate=1e30, max_grad_norm=0.0, n_epochs=5, training_type=spec.Full()).train()
    assert "learning_rate" in caught.value.hint


@pytest.mark.parametrize("n_checkpoints", [1, 2])
def test_weights_when_no_numbers_after_a_step_are_never_written(make_run, n_checkpoints):
    # Two rows a step: one step and its outputs, or a checkpoint between two.
    run = make_run(ROWS[: 2 * n_checkpoints], weight_decay=1e300, packing=False, n_checkpoints=n_checkpoints)
    with pytest.raises(NonFiniteLoss, match="weight"):
        run.train()
    names = [type(message).__name__ for message in run.read()]
    assert "Metric" in names
    assert not {"Exporting", "CheckpointSaved"} & set(names)


def test_modules_when_unknown_are_the_hyperparameters_fault(make_run):
    with pytest.raises(HyperparametersFault, match="wq"):
        make_run(ROWS, training_type=spec.Lora(r=4, alpha=8.0, target_modules=("wq",))).train()


def test_base_model_when_its_folder_is_gone_is_its_fault(make_run, tmp_path):
    with pytest.raises(BaseModelFault, match="luthier/tiny"):
        make_run(ROWS, model=tmp_path / "gone").train()


def test_memory_when_too_small_for_full_training_is_found_before_it_is_filled(make_run, monkeypatch):
    monkeypatch.setattr(machine, "measure_memory", lambda: 10_000_000)  # the weights of luthier/tiny take 4 MB
    run = make_run(ROWS, training_type=spec.Full())
    with pytest.raises(MemoryTooSmall, match=r"0\.02 GB for 1,017,344 parameters, of 0\.01 GB") as caught:
        run.train()
    assert "LoRA" in caught.value.hint
    assert failures.classify(caught.value, step=0).kind == "out_of_memory"
    make_run(ROWS).train()


def test_token_when_the_model_does_not_know_it_fails_instead_of_reading_past_the_table(make_run):
    with pytest.raises(IndexError):
        make_run([([5, 999_999, 6], b"\0\1\1")]).train()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataFault("x"), "data"),
        (HyperparametersFault("x"), "hyperparameters"),
        (BaseModelFault("x"), "base_model"),
        (NonFiniteLoss("x"), "non_finite_loss"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("x"), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 byte"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (PermissionError(errno.EACCES, "no"), "platform"),
        (TokensCorrupt("x"), "platform"),
        (ZeroDivisionError("x"), "platform"),
    ],
)
def test_classify_says_whose_turn_it_is(error, kind):
    failed = failures.classify(error, step=3)
    assert (failed.kind, failed.step) == (kind, 3)
    assert failed.message
    assert type(error).__name__ in failed.traceback


def test_allocation_when_impossible_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert failures.classify(caught.value, step=0).kind == "out_of_memory"
