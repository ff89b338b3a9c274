from __future__ import annotations

import hashlib

import pytest

from luthier.protocol.journal import FileEntry
from luthier.storage import DiskStore, MemoryStore
from luthier.supervisor import archives
from luthier.supervisor.archives import Archive, ArchiveDamaged

DATA = b"weights" * 1000
SIZE_BYTES = len(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()
KEY = "artifacts/ft-1/final-00000004-adapter.tar.zst"


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    return DiskStore(tmp_path / "objects") if request.param == "disk" else MemoryStore()


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "run" / "output").mkdir(parents=True)
    (tmp_path / "run" / "output" / "a").write_bytes(DATA)
    return tmp_path / "run"


def announce(path="output/a", *, size_bytes=SIZE_BYTES, sha256=SHA256) -> Archive:
    return Archive(KEY, FileEntry(path=path, size_bytes=size_bytes, sha256=sha256))


def test_keep_moves_the_archive_into_the_store(store, directory):
    archives.keep(store, directory, announce())
    assert b"".join(store.open_reader(KEY)) == DATA
    assert not (directory / "output" / "a").exists()


def test_keep_when_repeated_after_a_crash_finds_it_there(store, directory):
    archives.keep(store, directory, announce())
    archives.keep(store, directory, announce())
    assert b"".join(store.open_reader(KEY)) == DATA


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (announce(size_bytes=len(DATA) + 1), "7000 bytes, not 7001"),
        (announce(sha256="0" * 64), "its sha256 is"),
        (announce(sha256="../../etc"), "its sha256 is"),
        (announce("output/b"), "the file is not there"),
        (announce("output"), "not a regular file"),
        (announce("link"), "outside the run directory"),
        (announce("inner-link"), "not a regular file"),
        (announce("../secret"), "outside the run directory"),
        (announce("/etc/passwd"), "outside the run directory"),
    ],
)
def test_keep_when_the_file_is_not_what_was_announced_keeps_nothing(store, directory, archive, words):
    (directory.parent / "secret").write_bytes(DATA)
    (directory / "link").symlink_to(directory.parent / "secret")
    (directory / "inner-link").symlink_to(directory / "output" / "a")
    with pytest.raises(ArchiveDamaged, match=words):
        archives.keep(store, directory, archive)
    assert list(store.list_keys("")) == []


def test_keep_when_the_store_holds_something_else_under_the_key_is_not_fooled(store, directory):
    archives.keep(store, directory, announce())
    with pytest.raises(ArchiveDamaged, match="its sha256 is"):
        archives.keep(store, directory, announce(sha256="0" * 64))
