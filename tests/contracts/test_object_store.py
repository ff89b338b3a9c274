"""What every object store promises: the same tests for each of them."""

from __future__ import annotations

import threading

import pytest

from luthier.storage import DiskStore, MemoryStore, ObjectMissing

MIB = 1024 * 1024
BAD_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../outside",
    "a/../../outside",
    "a//b",
    "a/",
    "a/.hidden",
    ".unfinished/x",
    "a\0b",
    "a\nb",
    "a b",
    "ä",
    "x" * 513,
]


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    return DiskStore(tmp_path / "objects") if request.param == "disk" else MemoryStore()


def put(store, key: str, data: bytes) -> None:
    writer = store.open_writer(key)
    writer.write(data)
    writer.commit()


def read(store, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(store.open_reader(key, start, end))


def test_object_when_committed_reads_back_whole(store):
    data = bytes(range(256)) * 10_000  # 2.4 MiB: several blocks
    writer = store.open_writer("files/a/1")
    for offset in range(0, len(data), 70_000):
        writer.write(memoryview(data)[offset : offset + 70_000])
    writer.commit()
    assert read(store, "files/a/1") == data
    assert store.get_size("files/a/1") == len(data)


def test_object_when_empty_is_there(store):
    put(store, "empty", b"")
    assert store.get_size("empty") == 0
    assert read(store, "empty") == b""


def test_object_before_commit_is_not_visible(store):
    writer = store.open_writer("a")
    writer.write(b"half")
    with pytest.raises(ObjectMissing):
        store.get_size("a")
    assert list(store.list_keys("")) == []
    writer.abort()


def test_object_when_aborted_never_was(store):
    writer = store.open_writer("a")
    writer.write(b"half")
    writer.abort()
    writer.abort()
    with pytest.raises(ObjectMissing):
        read(store, "a")
    assert list(store.list_keys("")) == []
    assert store.sweep_unfinished(older_than_s=-1) == 0


def test_abort_after_commit_changes_nothing(store):
    writer = store.open_writer("a")
    writer.write(b"whole")
    writer.commit()
    writer.abort()
    assert read(store, "a") == b"whole"


def test_commit_when_key_exists_replaces_the_object(store):
    put(store, "a", b"old and longer")
    put(store, "a", b"new")
    assert read(store, "a") == b"new"


def test_reader_when_open_survives_the_delete(store):
    put(store, "a", b"x" * (3 * MIB))
    blocks = store.open_reader("a")
    first = next(blocks)
    store.delete("a")
    assert len(first) + sum(map(len, blocks)) == 3 * MIB


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, None, b"0123456789"), (3, None, b"3456789"), (3, 5, b"34"), (9, 100, b"9"), (10, None, b""), (4, 4, b"")],
)
def test_reader_when_given_a_range_yields_exactly_that(store, start, end, expected):
    put(store, "a", b"0123456789")
    assert read(store, "a", start, end) == expected


def test_read_when_object_is_missing_raises_before_the_first_byte(store):
    for ask in (store.get_size, store.find_local_path, lambda key: next(store.open_reader(key))):
        with pytest.raises(ObjectMissing):
            ask("nowhere/to/be/found")


def test_fetch_when_object_is_missing_raises_and_makes_nothing(store, tmp_path):
    with pytest.raises(ObjectMissing):
        store.fetch_file("missing", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_fetched_file_has_the_bytes_and_outlives_the_object(store, tmp_path):
    put(store, "a", b"bytes")
    store.fetch_file("a", tmp_path / "copy")
    store.delete("a")
    assert (tmp_path / "copy").read_bytes() == b"bytes"


def test_fetch_when_destination_exists_refuses(store, tmp_path):
    put(store, "a", b"bytes")
    (tmp_path / "copy").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        store.fetch_file("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"mine"


def test_put_file_keeps_the_source(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"bytes")
    store.put_file("a/b", source)
    source.write_bytes(b"changed afterwards")
    assert read(store, "a/b") == b"bytes"


def test_put_file_when_moved_gives_the_source_away(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"bytes")
    store.put_file("a/b", source, move=True)
    assert read(store, "a/b") == b"bytes"
    assert not source.exists()


def test_delete_when_repeated_or_missing_does_nothing(store):
    put(store, "a/b", b"1")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("a/b/c")
    with pytest.raises(ObjectMissing):
        store.get_size("a/b")


def test_list_keys_yields_those_that_begin_with_the_prefix(store):
    for key in ("files/a/1", "files/a/2", "files/ab", "jobs/1"):
        put(store, key, b"")
    assert sorted(store.list_keys("files/")) == ["files/a/1", "files/a/2", "files/ab"]
    assert sorted(store.list_keys("files/a")) == ["files/a/1", "files/a/2", "files/ab"]
    assert sorted(store.list_keys("files/a/")) == ["files/a/1", "files/a/2"]
    assert sorted(store.list_keys("")) == ["files/a/1", "files/a/2", "files/ab", "jobs/1"]
    assert list(store.list_keys("nothing/")) == []


@pytest.mark.parametrize("key", BAD_KEYS)
def test_key_when_malformed_is_refused_everywhere(store, tmp_path, key):
    source = tmp_path / "source"
    source.write_bytes(b"bytes")
    for use in (
        store.open_writer,
        store.open_reader,
        store.get_size,
        store.find_local_path,
        store.delete,
        lambda key: store.put_file(key, source),
        lambda key: store.fetch_file(key, tmp_path / "copy"),
    ):
        with pytest.raises(ValueError, match="malformed object key"):
            use(key)


def test_writers_of_one_key_at_once_leave_one_whole_object(store):
    bodies = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=put, args=(store, "contested", body)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(store, "contested") in bodies


def test_store_when_all_is_well_is_writable(store):
    store.require_writable()
    assert list(store.list_keys("")) == []
