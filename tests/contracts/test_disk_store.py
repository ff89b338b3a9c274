"""What only a disk can do: fail, fill up, and be shared."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import disks
from luthier import faults
from luthier.errors import InvalidRequest, Unavailable
from luthier.settings import Settings
from luthier.storage import DiskStore, ObjectMissing, StorageFailed, open_store

MIB = 1024 * 1024


def fail_with(number: int):
    def fsync(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    return fsync


def list_files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_commit_when_fsync_fails_raises_storage_failed_and_shows_nothing(tmp_path):
    store = DiskStore(tmp_path, fsync=fail_with(errno.EIO))
    writer = store.open_writer("a/b")
    writer.write(b"bytes")
    with pytest.raises(StorageFailed, match="fsync failed"):
        writer.commit()
    assert list_files(tmp_path) == []


def test_commit_when_fsync_finds_no_space_is_a_full_disk(tmp_path):
    store = DiskStore(tmp_path, fsync=fail_with(errno.ENOSPC))
    writer = store.open_writer("a")
    writer.write(b"bytes")
    with pytest.raises(Unavailable) as caught:
        writer.commit()
    assert caught.value.code == "disk_full"
    assert list_files(tmp_path) == []


def test_commit_syncs_the_bytes_before_and_the_directories_after_the_rename(tmp_path):
    synced = []

    def fsync(fd: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{fd}").readlink()), (tmp_path / "a" / "b" / "c").exists()))
        os.fsync(fd)

    writer = DiskStore(tmp_path, fsync=fsync).open_writer("a/b/c")
    writer.write(b"bytes")
    writer.commit()
    paths = [path for path, _ in synced]
    assert paths[0].startswith(str(tmp_path / ".unfinished"))
    assert paths[1:] == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    assert [visible for _, visible in synced] == [False, False, False, True]


def test_move_when_fsync_fails_leaves_the_source(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"precious")
    store = DiskStore(tmp_path / "objects", fsync=fail_with(errno.EIO))
    with pytest.raises(StorageFailed):
        store.put_file("a", source, move=True)
    assert source.read_bytes() == b"precious"


def test_write_when_the_disk_is_full_says_so_and_keeps_nothing(tmp_path):
    with disks.small_disk(tmp_path / "small", 4 * MIB) as root:
        store = DiskStore(root)
        kept = store.open_writer("kept")
        kept.write(b"x" * MIB)
        kept.commit()
        writer = store.open_writer("too-large")
        with pytest.raises(Unavailable) as caught:
            for _ in range(8):
                writer.write(b"x" * MIB)
        writer.abort()
        assert caught.value.code == "disk_full"
        assert caught.value.hint
        assert list_files(root) == ["kept"]
        assert store.find_free_bytes() >= 2 * MIB


def test_move_and_fetch_when_on_another_disk_copy(tmp_path):
    with disks.small_disk(tmp_path / "other", 4 * MIB) as other:
        store = DiskStore(tmp_path / "objects")
        source = other / "source"
        source.write_bytes(b"bytes")
        store.put_file("a", source, move=True)
        assert not source.exists()
        store.fetch_file("a", other / "back")
        assert (other / "back").read_bytes() == b"bytes"


def test_fetched_file_on_the_same_disk_costs_no_space(tmp_path):
    store = DiskStore(tmp_path / "objects")
    writer = store.open_writer("a")
    writer.write(b"bytes")
    writer.commit()
    store.fetch_file("a", tmp_path / "link")
    assert (tmp_path / "link").samefile(store.find_local_path("a"))


def test_sweep_removes_only_what_nobody_writes_to(tmp_path):
    store = DiskStore(tmp_path)
    store.open_writer("dead")._file.close()  # as a killed process leaves it
    (abandoned,) = (tmp_path / ".unfinished").iterdir()
    long_ago = time.time() - 7200
    os.utime(abandoned, (long_ago, long_ago))
    alive = store.open_writer("alive")
    alive.write(b"bytes")
    assert store.sweep_unfinished(older_than_s=3600) == 1
    alive.commit()
    assert list_files(tmp_path) == ["alive"]


CRASH = """
import sys
from pathlib import Path
from luthier.storage import DiskStore
writer = DiskStore(Path(sys.argv[1])).open_writer("a/b")
writer.write(b"bytes")
writer.commit()
"""


@pytest.mark.parametrize(
    ("point", "visible"), [("storage.before_rename", False), ("storage.after_rename", True)], ids=["before", "after"]
)
def test_object_when_the_process_dies_in_commit_is_whole_or_absent(tmp_path, point, visible):
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path)],
        env={**os.environ, "LUTHIER_FAULTS": point},
        check=False,
    )
    assert done.returncode == faults.EXIT_CODE
    store = DiskStore(tmp_path)
    if visible:
        assert b"".join(store.open_reader("a/b")) == b"bytes"
    else:
        with pytest.raises(ObjectMissing):
            store.get_size("a/b")
        assert store.sweep_unfinished(older_than_s=-1) == 1


def test_open_store_without_url_is_under_home(tmp_path):
    store = open_store(Settings(home=tmp_path))
    assert store.root == tmp_path / "objects"


def test_open_store_with_file_url_is_there(tmp_path):
    store = open_store(Settings(home=tmp_path, storage_url=f"file://{tmp_path}/my%20objects"))
    assert store.root == tmp_path / "my objects"


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "file://host/path", "file:relative", "/plain/path", ""])
def test_open_store_with_another_url_names_it_and_the_way_out(tmp_path, url):
    with pytest.raises(InvalidRequest) as caught:
        open_store(Settings(home=tmp_path, storage_url=url))
    assert caught.value.code == "unsupported_storage"
    assert "LUTHIER_STORAGE_URL" in caught.value.hint
