"""A job's archive: fetched, unpacked without trust in what it holds, and shown how to load."""

from __future__ import annotations

import io
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.cli import fetching
from luthier.cli.connection import Connection
from luthier.cli.exits import Exit, Failure
from luthier.cli.output import Output

PATH = "/v1/finetune/download"
SUFFIX = ".tar.zst"
# The wire's word for each of ours: a job's main output is the full weights.
CHOICES = {"adapter": "adapter", "merged": "merged", "model": "model_output_path"}


@dataclass(frozen=True)
class Archive:
    """What to download, and what the server calls it."""

    params: dict[str, Any]
    content: fetching.Content
    name: str

    @property
    def kind(self) -> str:
        """``adapter``, ``merged`` or ``model``, as the name says."""
        match = re.search(r"-(adapter|merged)(-step-\d+)?\.tar\.zst$", self.name)
        return match[1] if match else "model"


def find_archive(connection: Connection, job_id: str, *, choice: str, step: int | None) -> Archive:
    """Ask the server for the archive. Raises Failure with what there is when there is none such."""
    params: dict[str, Any] = {"ft_id": job_id, "checkpoint": CHOICES[choice]}
    if step is not None:
        params["checkpoint_step"] = step
    content = fetching.probe(connection, PATH, params)
    archive = Archive(params, content, content.filename or f"{job_id}-{choice}{SUFFIX}")
    if choice == "merged" and archive.kind == "adapter":  # the server's nearest, for clients that cannot choose
        raise Failure(
            "checkpoint_not_found",
            f"step {step} of {job_id} has no merged archive, only its adapter",
            exit_code=Exit.REFUSED,
            hint="ask for it with --checkpoint adapter",
        )
    return archive


@dataclass(frozen=True)
class Downloaded:
    """Where the files are: a folder, or the archive when it was not unpacked."""

    path: Path
    kind: str
    size_bytes: int
    sha256: str | None
    is_extracted: bool

    def to_json(self) -> dict[str, object]:
        """Return what ``--json`` prints."""
        return {
            "path": str(self.path.resolve()),
            "checkpoint": self.kind,
            "extracted": self.is_extracted,
            "archive_bytes": self.size_bytes,
            "archive_sha256": self.sha256,
        }


def download(
    output: Output, connection: Connection, archive: Archive, destination: Path | None, *, extract: bool
) -> Downloaded:
    """Fetch an archive and, unless told otherwise, unpack it into a folder of its own."""
    size_bytes, sha256 = archive.content.size_bytes, archive.content.sha256
    if not extract:
        target = fetching.choose_target(destination, archive.name)
        _fetch(output, connection, archive, target)
        return Downloaded(target, archive.kind, size_bytes, sha256, is_extracted=False)
    folder = _choose_folder(destination, archive)
    target = folder.with_name(folder.name + SUFFIX)
    _fetch(output, connection, archive, target)
    with output.waiting(f"Unpacking {target.name}"):
        unpack(target, folder)
    target.unlink()
    return Downloaded(folder, archive.kind, size_bytes, sha256, is_extracted=True)


def _fetch(output: Output, connection: Connection, archive: Archive, target: Path) -> None:
    fetching.require_space(target.parent, archive.content.size_bytes)
    with output.progress(f"Downloading {archive.name}") as advance:
        fetching.fetch(connection, PATH, target, params=archive.params, content=archive.content, on_progress=advance)


def _choose_folder(destination: Path | None, archive: Archive) -> Path:
    """Return the folder to unpack into. Raises Failure when it exists and holds anything."""
    name = Path(archive.name).name.removesuffix(SUFFIX).lstrip(".") or "model"
    folder = destination or Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Failure(
            "target_exists",
            f"{folder} exists already and is not an empty folder",
            exit_code=Exit.USAGE,
            hint="name another place with -o, or remove it first",
        )
    return folder


def show(output: Output, result: Downloaded) -> None:
    """Print where the files are, and how to load them."""
    if not result.is_extracted:
        output.line(str(result.path))
        return
    output.line(f"{result.path}/")
    output.note("")
    for line in make_snippet(result.path).splitlines():
        output.note(f"    {line}", style=None)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into ``folder``, all or nothing; an archive's single top folder becomes ``folder`` itself.

    Members that would land outside, links that point outside and special files are refused.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        inside = Path(temporary) / "content"
        inside.mkdir()
        try:
            with _open_zstd(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                tar.extractall(inside, filter="data")
        except (tarfile.TarError, EOFError, ValueError, _zstd_error()) as error:
            raise Failure(
                "archive_damaged",
                f"{archive.name} cannot be unpacked: {error}",
                exit_code=Exit.SERVER,
                hint="keep it as it is with --no-extract, and look into it with: tar --zstd -tvf",
            ) from error
        entries = list(inside.iterdir())
        source = entries[0] if len(entries) == 1 and entries[0].is_dir() else inside
        if folder.exists():
            folder.rmdir()  # empty, as choose_folder required
        shutil.move(source, folder)


@contextmanager
def _open_zstd(path: Path) -> Iterator[io.BufferedIOBase]:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    with zstd.open(path, "rb") as stream:
        yield stream


def _zstd_error() -> type[Exception]:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdError


def make_snippet(folder: Path) -> str:
    """Return the lines of Python that load what was unpacked."""
    if any(folder.rglob("adapter_config.json")):
        return f"from peft import AutoPeftModelForCausalLM\nmodel = AutoPeftModelForCausalLM.from_pretrained({str(folder)!r})"
    return (
        f"from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    )
