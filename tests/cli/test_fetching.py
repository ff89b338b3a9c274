"""Downloads from a real server that drops connections and changes its mind."""

from __future__ import annotations

import hashlib
import os
import re

import pytest

from luthier.cli import fetching
from luthier.cli.exits import Exit, Failure

DATA = os.urandom(300_000)


class Source:
    """Serves ``data`` with Range and If-Range; drops the connection after ``drop_bytes`` of an answer."""

    def __init__(self, data=DATA, *, drop_bytes=None, sha256=None, honours_range=True):
        self.data = data
        self.drop_bytes = drop_bytes
        self.sha256 = sha256
        self.honours_range = honours_range
        self.starts = []

    def __call__(self, request):
        etag = f'"{self.sha256 or hashlib.sha256(self.data).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        is_probe = wanted is not None and wanted[2] == "1"
        start, end = (int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else len(self.data)) if wanted else (0, None)
        if not self.honours_range or request.headers.get("If-Range", etag) != etag:
            wanted, start, end = None, 0, None
        body = self.data[start:end]
        request.send_response(206 if wanted else 200)
        request.send_header("ETag", etag)
        request.send_header("Content-Length", str(len(body)))
        if wanted:
            request.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(self.data)}")
        request.end_headers()
        if is_probe:
            request.wfile.write(body)
            return
        self.starts.append(start)
        request.wfile.write(body[: self.drop_bytes])


def fetch(connection, target, **options):
    return fetching.fetch(connection, "/x", target, on_progress=lambda *_: None, sleep=lambda _: None, **options)


def test_fetch_when_connection_drops_often_then_it_is_resumed_to_the_same_bytes(serve, connect, tmp_path):
    source, target = Source(drop_bytes=70_000), tmp_path / "a" / "model.tar.zst"
    with serve(source) as peer:
        content = fetch(connect(peer.url), target)
    assert target.read_bytes() == DATA
    assert content.sha256 == hashlib.sha256(DATA).hexdigest()
    assert source.starts == [0, 70_000, 140_000, 210_000, 280_000]
    assert list(target.parent.iterdir()) == [target]


def test_fetch_when_run_again_after_it_was_broken_off_then_goes_on_where_it_ended(serve, connect, tmp_path):
    target = tmp_path / "model.tar.zst"

    def interrupt(done, total):
        assert total == len(DATA)
        if done > 100_000:
            raise KeyboardInterrupt

    with serve(Source()) as peer, pytest.raises(KeyboardInterrupt):
        fetching.fetch(connect(peer.url), "/x", target, on_progress=interrupt)
    (part,) = tmp_path.iterdir()
    assert part != target
    had = part.stat().st_size
    source = Source()
    with serve(source) as peer:
        fetch(connect(peer.url), target)
    assert source.starts == [had]
    assert had > 100_000
    assert target.read_bytes() == DATA


def test_fetch_when_content_changed_meanwhile_then_old_bytes_are_not_mixed_in(serve, connect, tmp_path):
    target, changed = tmp_path / "file", bytes(reversed(DATA))
    with serve(Source(drop_bytes=100_000)) as peer:
        connection = connect(peer.url)
        content = fetching.probe(connection, "/x")
        peer.answer = Source(changed)
        with pytest.raises(Failure, match="sha256") as caught:
            fetch(connection, target, content=content)
        assert not list(tmp_path.iterdir())
        fetch(connection, target)
    assert caught.value.exit_code is Exit.SERVER
    assert target.read_bytes() == changed


def test_fetch_when_bytes_differ_from_the_announced_hash_then_nothing_is_kept(serve, connect, tmp_path):
    with serve(Source(sha256="0" * 64)) as peer, pytest.raises(Failure, match="damaged"):
        fetch(connect(peer.url), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_fetch_when_server_knows_no_ranges_then_it_still_arrives(serve, connect, tmp_path):
    with serve(Source(honours_range=False)) as peer:
        fetch(connect(peer.url), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


def test_fetch_when_server_gives_nothing_any_more_then_gives_up(serve, connect, tmp_path):
    source = Source(drop_bytes=0)
    with serve(source) as peer, pytest.raises(Failure) as caught:
        fetch(connect(peer.url), tmp_path / "file")
    assert caught.value.exit_code is Exit.CONNECTION
    assert len(source.starts) == fetching.TRIES


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jsonl", "a.jsonl"), ("../../etc/passwd", "passwd"), ("..\\x", "x"), (".bashrc", "bashrc"), ("..", "download")],
)
def test_choose_target_when_name_comes_from_a_server_then_only_a_plain_name_is_used(name, expected, tmp_path):
    assert fetching.choose_target(tmp_path, name) == tmp_path / expected


def test_choose_target_when_something_is_there_then_it_is_not_overwritten(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(Failure, match="exists already"):
        fetching.choose_target(tmp_path, "a")
