"""What crashes and deletions leave in the store is removed here; meant to be called now and then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from luthier.db import Database
from luthier.files import queries
from luthier.files.service import OBJECT_PREFIX
from luthier.storage import ObjectStore

UPLOAD_KEPT = timedelta(days=1)  # after its expiry: so long its URL gets a better answer than "unknown"
DELETED_KEPT = timedelta(hours=1)  # so long a deleted file's bytes stay, for who is reading them just now
UNFINISHED_S = 3600.0  # a living writer writes at least once in the upload's idle timeout
BATCH = 500  # keys a query: below both databases' limits of parameters


@dataclass(frozen=True)
class Swept:
    """How much went."""

    uploads: int
    objects: int
    unfinished: int


def sweep(database: Database, store: ObjectStore, *, now: datetime) -> Swept:
    """Forget old uploads, then remove the objects that no file has and no upload may still claim.

    Uploads are forgotten first: one whose row is gone can no longer become a file, so an object of it
    that is seen here afterwards is nobody's. A crash in between only leaves work to the next sweep.
    """
    with database.transaction() as tx:
        uploads = queries.delete_uploads_expired_before(tx, now - UPLOAD_KEPT)
    objects = 0
    for keys in _batched(store.list_keys(OBJECT_PREFIX), BATCH):
        for key in _select_orphans(database, keys, now):
            store.delete(key)
            objects += 1
    return Swept(uploads=uploads, objects=objects, unfinished=store.sweep_unfinished(older_than_s=UNFINISHED_S))


def _select_orphans(database: Database, keys: Sequence[str], now: datetime) -> list[str]:
    upload_ids = {_get_upload_id(key) for key in keys}
    with database.read() as tx:  # one moment for both questions: an upload turns into a file in one transaction
        in_use = queries.list_keys_in_use(tx, upload_ids, now - DELETED_KEPT)
        open_uploads = queries.list_open_upload_ids(tx, upload_ids)
    return [key for key in keys if key not in in_use and _get_upload_id(key) not in open_uploads]


def _get_upload_id(key: str) -> str:
    return key.removeprefix(OBJECT_PREFIX).partition("/")[0]


def _batched(keys: Iterator[str], size: int) -> Iterator[Sequence[str]]:
    while batch := tuple(islice(keys, size)):
        yield batch
