"""Archives are unpacked without trust in what they hold."""

from __future__ import annotations

import io
import sys
import tarfile

import pytest

from luthier.cli import downloading
from luthier.cli.exits import Failure

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def write_archive(path, members):
    """Write a .tar.zst of (TarInfo or name, bytes)."""
    with zstd.open(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def make_link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "model.tar.zst"


def test_unpack_when_files_at_the_top_then_the_folder_holds_them(archive, tmp_path):
    write_archive(archive, [("config.json", b"{}"), ("sub/weights", b"w")])
    downloading.unpack(archive, tmp_path / "out")
    assert list_files(tmp_path / "out") == ["config.json", "sub", "sub/weights"]
    assert list_files(tmp_path) == ["model.tar.zst", "out", "out/config.json", "out/sub", "out/sub/weights"]


def test_unpack_when_one_folder_at_the_top_then_it_becomes_the_folder(archive, tmp_path):
    write_archive(archive, [("tiny-1a2b/config.json", b"{}"), ("tiny-1a2b/README.md", b"")])
    downloading.unpack(archive, tmp_path / "out")
    assert list_files(tmp_path / "out") == ["README.md", "config.json"]


@pytest.mark.parametrize(
    "member",
    [
        "../evil",
        "/tmp/evil-luthier",
        make_link("link", "/etc/passwd"),
        make_link("link", "../../outside"),
        make_link("link", "../outside", tarfile.LNKTYPE),
        make_link("pipe", "", tarfile.FIFOTYPE),
        make_link("device", "", tarfile.CHRTYPE),
    ],
    ids=lambda member: member if isinstance(member, str) else f"{member.name}-{member.linkname}",
)
def test_unpack_when_member_reaches_outside_then_nothing_is_unpacked(archive, tmp_path, member):
    folder = tmp_path / "inner" / "out"
    write_archive(archive, [("config.json", b"{}"), (member, b"")])
    if member == "/tmp/evil-luthier":  # absolute names are made relative, which is as good
        downloading.unpack(archive, folder)
        assert list_files(folder) == ["config.json", "tmp", "tmp/evil-luthier"]
        return
    with pytest.raises(Failure, match="cannot be unpacked"):
        downloading.unpack(archive, folder)
    assert list_files(tmp_path) == ["inner", "model.tar.zst"]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"not zstd at all"])
def test_unpack_when_archive_is_damaged_then_nothing_is_left_behind(archive, tmp_path, damage):
    write_archive(archive, [("weights", bytes(range(256)) * 4000)])
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(Failure, match="cannot be unpacked"):
        downloading.unpack(archive, tmp_path / "out")
    assert list_files(tmp_path) == ["model.tar.zst"]


def test_make_snippet_when_adapter_then_peft_loads_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "AutoPeftModelForCausalLM" in downloading.make_snippet(tmp_path)


def test_make_snippet_when_model_then_transformers_loads_it(tmp_path):
    snippet = downloading.make_snippet(tmp_path)
    assert "from transformers import AutoModelForCausalLM" in snippet
    assert repr(str(tmp_path)) in snippet
