"""Model folders to fetch from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from luthier.catalog.fetch import build_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """``luthier/tiny``; not to be written to."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    build_tiny(folder)
    return folder


@pytest.fixture
def model_folder(tiny, tmp_path) -> Path:
    """A copy of ``luthier/tiny`` that a test may spoil."""
    folder = tmp_path / "source"
    shutil.copytree(tiny, folder)
    return folder


@pytest.fixture
def edit_json():
    """Change some fields of a JSON file."""

    def edit(path: Path, **fields: object) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit
