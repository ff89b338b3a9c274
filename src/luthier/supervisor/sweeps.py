"""What nobody needs any more, removed now and then: run directories of jobs that ended, files without an owner."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from pathlib import Path

from luthier.files import sweep as files
from luthier.log import get_logger
from luthier.protocol import layout
from luthier.supervisor.site import Site

SWEEP_EVERY_S = 3600.0
RUN_KEPT_S = 7 * 86_400.0  # so long an operator can read the journal and the log of a job that ended

_log = get_logger(__name__)


def sweep(site: Site, *, held: Collection[str]) -> None:
    """Remove old run directories, but for the ``held`` jobs', and what uploads and deletions left in the store."""
    for directory in site.settings.runs_dir.iterdir():
        if directory.name not in held and _is_old(directory):
            shutil.rmtree(directory, ignore_errors=True)
            _log.info("run directory removed", job=directory.name)
    swept = files.sweep(site.database, site.store, now=site.clock.now())
    if swept.uploads or swept.objects or swept.unfinished:
        _log.info("storage swept", uploads=swept.uploads, objects=swept.objects, unfinished=swept.unfinished)


def _is_old(directory: Path) -> bool:
    """Tell whether the lease was last renewed long ago: that of a job which any supervisor holds never was."""
    try:
        renewed_at = (directory / layout.LEASE).stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return False
    return time.time() - renewed_at > RUN_KEPT_S
