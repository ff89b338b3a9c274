from __future__ import annotations

import shutil

import pytest

from luthier.protocol.spec import Full, Hyperparameters, Lora, Schedule
from luthier.storage import DiskStore, MemoryStore, ObjectMissing
from luthier.supervisor import run_directory
from luthier.supervisor.run_directory import NotEnoughSpace, RunDirectory, find_last_line


@pytest.fixture
def directory(tmp_path):
    directory = RunDirectory(tmp_path / "runs" / "ft-1")
    directory.create()
    return directory


def put(store, key, data):
    writer = store.open_writer(key)
    writer.write(data)
    writer.commit()


def test_run_directory_is_private_to_its_owner(directory):
    assert directory.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_fetch_when_repeated_replaces_what_an_interrupted_try_left(directory, tmp_path, kind):
    store = DiskStore(tmp_path / "objects") if kind == "disk" else MemoryStore()
    put(store, "tokens/1", b"abc")
    (directory.path / "data" / "train.tokens").write_bytes(b"ab")
    for _ in range(2):
        directory.fetch(store, "tokens/1", "data/train.tokens")
        assert (directory.path / "data" / "train.tokens").read_bytes() == b"abc"
    with pytest.raises(ObjectMissing):
        directory.fetch(store, "tokens/2", "data/train.tokens")


def test_trim_log_when_too_long_keeps_its_end_and_the_writer_goes_on(directory):
    log = directory.path / "worker.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * run_directory.LOG_MAX_BYTES + b"\nthe end\n")
        directory.trim_log()
        writer.write(b"and on\n")
    assert log.stat().st_size == run_directory.LOG_KEPT_BYTES + len(b"and on\n")
    assert log.read_bytes().endswith(b"\nthe end\nand on\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", None),
        ("\n  \n", None),
        ("one\ntwo\n\n", "two"),
        ("\x1b[31mred\x1b[0m\x07\n", "[31mred[0m"),
        ("a" * 1000, "a" * run_directory.LAST_LINE_MAX_CHARS),
        ("key lk-0123456789abcdef0123456789", "key lk-01234567…"),
    ],
)
def test_last_line_of_a_log_is_short_printable_and_without_secrets(tmp_path, text, line):
    (tmp_path / "log").write_text(text)
    assert find_last_line(tmp_path / "log") == line


def test_last_line_of_no_log_is_none(tmp_path):
    assert find_last_line(tmp_path / "log") is None


def test_require_space_when_reserve_would_be_touched_names_the_sizes(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    run_directory.require_space(tmp_path, 0, free // 2)
    with pytest.raises(NotEnoughSpace, match=r"may need 1000000\.00 GB of disk and 2\.00 GB are kept in reserve"):
        run_directory.require_space(tmp_path, 10**15, 2 * 10**9)


@pytest.mark.parametrize(("training_type", "expected"), [(Lora(r=8, alpha=16), 210), (Full(), 510)])
def test_estimate_bytes_counts_a_whole_model_for_each_full_checkpoint(training_type, expected):
    hyperparameters = Hyperparameters(
        n_epochs=1, n_checkpoints=3, n_evals=0, batch_size=1, gradient_accumulation_steps=1, learning_rate=1e-4,
        schedule=Schedule(), max_grad_norm=1.0, weight_decay=0.0, random_seed=1, packing=True, max_seq_length=8,
        training_type=training_type, train_on_inputs="auto",
    )  # fmt: skip
    assert run_directory.estimate_bytes(hyperparameters, 100, 10) == expected
