"""Fixtures of the trainer's tests: a small model, a place to compute, run directories."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from luthier.protocol import layout, spec
from training_runs import HYPERPARAMETERS, Run, write_tokens

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the worker does, before torch is loaded


PEFT_IS_BEHIND = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # it asks transformers by an old name


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Mark every test of this folder: no two processes with torch at once."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.training)
            item.add_marker(pytest.mark.filterwarnings(PEFT_IS_BEHIND))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of luthier/tiny."""
    from luthier.catalog.fetch import build_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def place():
    """Where the tests compute: fp32 on one CPU thread, deterministic."""
    import torch

    from luthier.training import devices

    devices.make_deterministic(seed=0, threads=1)
    return devices.Place(torch.device("cpu"), torch.float32)


@pytest.fixture
def make_run(tmp_path, tiny):
    """Return a maker of run directories: rows, and hyper-parameters that differ from the usual ones."""
    made = []

    def make(rows, *, model=tiny, validation=None, lease_s=1e6, threads=1, **changes) -> Run:
        path = tmp_path / f"run-{len(made)}"
        write_tokens(path / layout.TRAIN_TOKENS, rows)
        if validation is not None:
            write_tokens(path / layout.VALIDATION_TOKENS, validation)
        (path / layout.LEASE).touch()
        training_spec = spec.TrainingSpec(
            version=spec.VERSION,
            job_id=f"ft-test-{len(made)}",
            base_model=spec.BaseModel(name="luthier/tiny", revision="r1", path=str(model)),
            hyperparameters=msgspec.structs.replace(HYPERPARAMETERS, **changes),
            device=spec.Device(kind="cpu", precision="fp32", threads=threads),
            recipe=spec.Recipe(output_name="acme/tiny-x", training_file="x.jsonl", training_file_sha256="ab" * 32),
            lease_s=lease_s,
        )
        spec.write_spec(path / layout.SPEC, training_spec)
        made.append(path)
        return Run(path, training_spec)

    return make


@pytest.fixture
def unpack(tmp_path):
    """Return a function that unpacks an archive of a run into a folder of its own."""

    def unpack_archive(run, entry):
        import tarfile

        from luthier.training.archive import zstd

        folder = tmp_path / f"unpacked-{run.path.name}-{Path(entry.path).name}"
        with zstd.open(run.path / entry.path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            tar.extractall(folder, filter="data")
        return folder

    return unpack_archive
