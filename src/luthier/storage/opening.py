"""The store that the settings name."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from luthier.errors import InvalidRequest
from luthier.settings import Settings
from luthier.storage.disk import DiskStore
from luthier.storage.store import ObjectStore


def open_store(settings: Settings) -> ObjectStore:
    """Return the store at ``LUTHIER_STORAGE_URL``, or the one under home. Raises InvalidRequest for another kind."""
    if settings.storage_url is None:
        return DiskStore(settings.objects_dir)
    url = urlsplit(settings.storage_url)
    if url.scheme != "file" or url.netloc or not url.path.startswith("/"):
        raise InvalidRequest(
            "unsupported_storage",
            f"cannot store objects at: {settings.storage_url}",
            hint="set LUTHIER_STORAGE_URL to file:///an/absolute/path, or leave it unset for HOME/objects",
        )
    return DiskStore(Path(unquote(url.path)))
