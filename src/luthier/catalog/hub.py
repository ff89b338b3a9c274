"""Base models from the Hugging Face hub: from its local cache, else by download. Safetensors and JSON only."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of whichever library the hub uses
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from luthier.catalog import folders
from luthier.catalog.refusal import FetchRefused

TIMEOUT_S = 10.0  # to be answered at all; there may be another source to try
PATTERNS = [*folders.SMALL_FILE_PATTERNS, *folders.WEIGHT_PATTERNS]


def fetch(repository: str, revision: str | None, folder: Path, *, download_dir: Path) -> str:
    """Fill an existing empty folder with the model's files; return where they are from, in words.

    ``download_dir`` keeps what has arrived, so that the next attempt goes on from there. Raises
    FetchRefused when the model cannot be had, or must not be.
    """
    cached = _find_cached(repository, revision)
    if cached is not None:
        folders.copy_files(cached, folder)
        return f"the local Hugging Face cache, {repository} at {cached.name[:12]}"
    try:
        commit = _download(repository, revision, download_dir)
    except RevisionNotFoundError as error:
        raise FetchRefused(
            "model_not_on_hub",
            f"the hub's {repository} has no such revision: {revision}",
            hint="choose another revision",
        ) from error
    except GatedRepoError as error:
        raise FetchRefused(
            "model_gated",
            f"the hub asks for leave to read {repository}",
            hint="accept its terms on the hub, and start the supervisor with HF_TOKEN set",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FetchRefused(
            "model_not_on_hub",
            f"the hub has no such model, or hides it: {repository}",
            hint="check the name; for a private model, start the supervisor with HF_TOKEN set",
        ) from error
    except (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise FetchRefused(
            "hub_unreachable",
            f"the hub cannot be reached: {str(error).partition(chr(10))[0]}",
            hint="try again when it can be, or add the model from a folder",
            is_final=False,
        ) from error
    except FetchRefused:
        shutil.rmtree(download_dir)
        raise
    for name in folders.list_files(download_dir / commit):
        (download_dir / commit / name).rename(folder / name)
    shutil.rmtree(download_dir)
    return f"the Hugging Face hub, {repository} at {commit[:12]}"


def _find_cached(repository: str, revision: str | None) -> Path | None:
    """Return the local cache's folder when all of the model is in it."""
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS, local_files_only=True))
        folders.check_folder(folder)
    except (LocalEntryNotFoundError, HFValidationError, FetchRefused):
        return None
    return folder


def _download(repository: str, revision: str | None, download_dir: Path) -> str:
    """Download what is needed, the small files first: they tell whether the rest is wanted.

    Returns the commit, which is the name of the folder under ``download_dir``.
    """
    info = HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_S)
    assert info.sha is not None, f"the hub names no commit for {repository}"
    folder = download_dir / info.sha
    folder.mkdir(parents=True, exist_ok=True)
    names = {sibling.rfilename for sibling in info.siblings or ()}
    if not names & {folders.WEIGHTS, folders.WEIGHTS_INDEX}:
        raise folders.refuse_weights(names)
    for patterns in (folders.SMALL_FILE_PATTERNS, folders.WEIGHT_PATTERNS):
        snapshot_download(
            repository, revision=info.sha, local_dir=folder, allow_patterns=list(patterns), etag_timeout=TIMEOUT_S
        )
        folders.check_small_files(folder)
    return info.sha
