"""Where bytes are kept, by key. Nothing is visible before it is complete and durable."""

from luthier.storage.disk import DiskStore
from luthier.storage.memory import MemoryStore
from luthier.storage.opening import open_store
from luthier.storage.store import ObjectMissing, ObjectStore, ObjectWriter, StorageFailed

__all__ = [
    "DiskStore",
    "MemoryStore",
    "ObjectMissing",
    "ObjectStore",
    "ObjectWriter",
    "StorageFailed",
    "open_store",
]
