"""The token file: what was written is read, and anything less is refused."""

from __future__ import annotations

import pytest

from luthier.datasets import tokens

COUNTS = tokens.Counts(
    rows=3,
    used_rows=2,
    dropped_rows=1,
    dropped_lines=[2],
    truncated_rows=0,
    truncated_lines=[],
    tokens=5,
    trained_tokens=3,
    longest_row_tokens=3,
    packs=1,
)


@pytest.fixture
def token_path(tmp_path):
    path = tmp_path / "train.tokens"
    with tokens.TokenWriter(path) as writer:
        writer.add([1, 2, 70_000], b"\0\1\1")
        writer.add([4, 5], b"\0\1")
        writer.finish(COUNTS)
    return path


def test_file_when_written_is_read_back(token_path):
    opened = tokens.open_tokens(token_path)
    assert list(opened.input_ids) == [1, 2, 70_000, 4, 5]
    assert list(opened.trained) == [0, 1, 1, 0, 1]
    assert list(opened.offsets) == [0, 3, 5]
    assert (opened.input_ids.format, opened.trained.format, opened.offsets.format) == ("I", "B", "Q")
    assert opened.counts == COUNTS
    assert not opened.input_ids.readonly
    assert [path.name for path in token_path.parent.iterdir()] == ["train.tokens"]


def test_file_when_a_view_is_written_to_stays_as_it_is(token_path):
    tokens.open_tokens(token_path).input_ids[0] = 9
    assert tokens.open_tokens(token_path).input_ids[0] == 1


def test_file_when_any_bit_flips_is_refused(token_path):
    whole = token_path.read_bytes()
    for position in range(len(whole)):
        torn = bytearray(whole)
        torn[position] ^= 0x10
        token_path.write_bytes(torn)
        with pytest.raises(tokens.TokensCorrupt):
            tokens.open_tokens(token_path)


def test_file_when_writing_fails_is_not_there(tmp_path):
    path = tmp_path / "train.tokens"
    with pytest.raises(RuntimeError), tokens.TokenWriter(path) as writer:
        writer.add([1], b"\1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_key_when_any_input_differs_differs():
    key = tokens.make_key("a" * 64, "digest", 512, "auto")
    others = [
        tokens.make_key("b" * 64, "digest", 512, "auto"),
        tokens.make_key("a" * 64, "other", 512, "auto"),
        tokens.make_key("a" * 64, "digest", 513, "auto"),
        tokens.make_key("a" * 64, "digest", 512, train_on_inputs=True),
        tokens.make_key("a" * 64, "digest", 512, train_on_inputs=False),
    ]
    assert key == tokens.make_key("a" * 64, "digest", 512, "auto")
    assert len({key, *others}) == 6
