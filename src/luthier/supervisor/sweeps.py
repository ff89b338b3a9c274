"""What nobody needs any more, removed now and then: old run directories, and bytes whose owner is gone.

Rows first, bytes second: a crash in between leaves bytes without a row, which the next sweep removes, and never a row
without bytes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

from luthier.artifacts import service as artifacts
from luthier.billing import quotes
from luthier.billing.quotes import SettledView
from luthier.catalog import service as catalog
from luthier.db import Session
from luthier.files import service as files
from luthier.files import sweep as file_sweep
from luthier.jobs import service as jobs
from luthier.log import get_logger
from luthier.protocol import layout
from luthier.supervisor.site import Site

SWEEP_EVERY_S = 3600.0
DELETED_KEPT = timedelta(hours=1)  # as for files
BATCH = 500  # keys a query: below both databases' limits of parameters
RUN_KEPT_S = 7 * 86_400.0  # so long an operator can read the journal and the log of a job that ended

_log = get_logger(__name__)


def sweep(site: Site, *, held: Collection[str]) -> None:
    """Remove old run directories, but for the ``held`` jobs', and what uploads and deletions left in the store.

    What was deleted stays for ``DELETED_KEPT``, for who is reading it just now.
    """
    for directory in site.settings.runs_dir.iterdir():
        if directory.name not in held and _is_old(directory):
            shutil.rmtree(directory, ignore_errors=True)
            _log.info("run directory removed", job=directory.name)
    swept = file_sweep.sweep(site.database, site.store, now=site.clock.now())
    if swept.uploads or swept.objects or swept.unfinished:
        _log.info("storage swept", uploads=swept.uploads, objects=swept.objects, unfinished=swept.unfinished)
    deleted_before = site.clock.now() - DELETED_KEPT
    archives = _sweep_archives(site, deleted_before)
    counts, tokens = _forget_counts(site, deleted_before), _sweep_tokens(site)
    if archives or counts or tokens:
        _log.info("outputs and tokens swept", archives=archives, counts=counts, tokens=tokens)


def _sweep_archives(site: Site, deleted_before: datetime) -> int:
    """Remove the archives of deleted jobs, late ones of a worker that was being cancelled too; return how many."""
    count = 0
    for keys in _batched(site.store.list_keys(artifacts.OBJECT_PREFIX), BATCH):
        job_ids = {artifacts.get_job_id(key) for key in keys}
        with site.database.transaction() as tx:
            forgotten = jobs.list_forgotten(tx, job_ids, deleted_before=deleted_before)
            if forgotten:
                artifacts.forget(tx, forgotten)
        count += _delete(site, [key for key in keys if artifacts.get_job_id(key) in forgotten])
    return count


def _forget_counts(site: Site, deleted_before: datetime) -> int:
    """Forget the token counts of content that nobody has, or whose tokenizer is gone; return how many."""
    with site.database.read() as tx:
        settled = quotes.list_settled(tx)
    count = 0
    for keys in _batched(iter(settled), BATCH):
        with site.database.transaction() as tx:
            unused = _select_unused(tx, quotes.lock_settled(tx, keys), deleted_before)
            if unused:
                quotes.forget(tx, unused)
        count += len(unused)
    return count


def _select_unused(tx: Session, counts: Sequence[SettledView], deleted_before: datetime) -> list[str]:
    contents = files.list_contents_in_use(tx, {one.file_sha256 for one in counts}, deleted_after=deleted_before)
    tokenizers = catalog.list_tokenizer_digests(tx)
    in_use = jobs.list_tokenizations_in_use(tx)
    return [
        one.key
        for one in counts
        if one.key not in in_use and not (one.file_sha256 in contents and one.tokenizer_digest in tokenizers)
    ]


def _sweep_tokens(site: Site) -> int:
    """Remove tokens that no count has; return how many."""
    count = 0
    for keys in _batched(site.store.list_keys(quotes.OBJECT_PREFIX), BATCH):
        with site.database.read() as tx:
            orphans = quotes.list_orphans(tx, keys)
        count += _delete(site, orphans)
    return count


def _delete(site: Site, keys: Sequence[str]) -> int:
    for key in keys:
        site.store.delete(key)
    return len(keys)


def _batched(keys: Iterator[str], size: int) -> Iterator[Sequence[str]]:
    while batch := tuple(islice(keys, size)):
        yield batch


def _is_old(directory: Path) -> bool:
    """Tell whether the lease was last renewed long ago: that of a job which any supervisor holds never was."""
    try:
        renewed_at = (directory / layout.LEASE).stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return False
    return time.time() - renewed_at > RUN_KEPT_S
