"""Archives and safetensors files, read back by the libraries that define them."""

import hashlib
import os
import tarfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.training.archive import Member, WeightsDigest, make_member, write_archive, zstd
from luthier.training.weights import WeightsFile, hold, read_folder

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.randn(3, 5).bfloat16(),
    "c": torch.randn(2, 2, dtype=torch.float32).t(),  # not contiguous
    "d": torch.tensor(3.0).half(),  # no dimension
}


def _read(path):
    with zstd.open(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]


def test_weights_when_written_part_by_part_are_a_safetensors_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"".join(hold(TENSORS).iterate_bytes()))
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    assert (tmp_path / "x.safetensors").stat().st_size == hold(TENSORS).size_bytes


def test_folder_when_read_and_written_again_keeps_every_tensor(tmp_path):
    save_file({name: TENSORS[name] for name in "ab"}, tmp_path / "model-1.safetensors")
    save_file({"d": TENSORS["d"]}, tmp_path / "model-2.safetensors")
    with read_folder(tmp_path) as weights:
        data = b"".join(WeightsFile(list(weights.values())).iterate_bytes())
    (tmp_path / "whole").write_bytes(data)
    loaded = load_file(tmp_path / "whole")
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in "abd")


def test_archive_entry_tells_size_and_digest_of_what_is_on_disk(tmp_path):
    entry = write_archive(tmp_path, "output/x.tar.zst", [make_member("README.md", "hello")], threads=1)
    data = (tmp_path / "output/x.tar.zst").read_bytes()
    assert (entry.path, entry.size_bytes) == ("output/x.tar.zst", len(data))
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["x.tar.zst"]


def test_archive_when_written_again_is_the_same_whatever_the_threads_and_the_order(tmp_path):
    big = os.urandom(3_000_000)  # more than one of the compressor's jobs

    def members():
        return [make_member("z.bin", big), make_member("a.txt", "hello")]

    first = write_archive(tmp_path, "output/1.tar.zst", members(), threads=1)
    second = write_archive(tmp_path, "output/2.tar.zst", members()[::-1], threads=2)
    assert first.sha256 == second.sha256
    (small, text), (large, data) = _read(tmp_path / first.path)
    assert (small.name, text, large.name) == ("a.txt", b"hello", "z.bin")
    assert data == big
    assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in (small, large)} == {
        (0, 0, 0, "", 0o644)
    }


def test_archive_when_a_member_fails_leaves_nothing(tmp_path):
    def fail():
        yield b"abc"
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        write_archive(tmp_path, "output/x.tar.zst", [Member("x", 6, fail())], threads=1)
    assert list((tmp_path / "output").iterdir()) == []


def test_digest_is_that_of_the_weights_alone(tmp_path):
    digest = WeightsDigest()
    members = [make_member("README.md", "hello"), digest.make_member("model.safetensors", hold(TENSORS))]
    entry = write_archive(tmp_path, "output/x.tar.zst", members, threads=1)
    (_, weights) = _read(tmp_path / entry.path)[1]
    assert digest.hexdigest() == hashlib.sha256(weights).hexdigest()
