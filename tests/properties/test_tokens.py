"""Token files: any rows come back, any shorter file is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.datasets import tokens

TOKEN = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 1))
ROWS = st.lists(st.lists(TOKEN, max_size=20), max_size=8)


def write(path: Path, rows) -> None:
    counts = tokens.Counts(
        rows=len(rows),
        used_rows=len(rows),
        dropped_rows=0,
        dropped_lines=[],
        truncated_rows=0,
        truncated_lines=[],
        tokens=sum(map(len, rows)),
        trained_tokens=sum(mark for row in rows for _, mark in row),
        longest_row_tokens=max(map(len, rows), default=0),
        packs=len(rows),
    )
    with tokens.TokenWriter(path) as writer:
        for row in rows:
            writer.add([token for token, _ in row], bytes(mark for _, mark in row))
        writer.finish(counts)


@given(ROWS)
def test_file_when_read_has_the_rows_that_were_written(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tokens"
        write(path, rows)
        opened = tokens.open_tokens(path)
    read = [
        list(zip(opened.input_ids[start:end], opened.trained[start:end], strict=True))
        for start, end in zip(opened.offsets, opened.offsets[1:], strict=False)
    ]
    assert read == rows
    assert opened.counts.tokens == len(opened.input_ids)
    assert opened.counts.trained_tokens == sum(opened.trained)


@given(ROWS, st.data())
def test_file_when_cut_short_or_longer_is_refused(rows, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tokens"
        write(path, rows)
        whole = path.read_bytes()
        kept = data.draw(st.integers(0, len(whole) - 1))
        for changed in (whole[:kept], whole + b"\0"):
            path.write_bytes(changed)
            with pytest.raises(tokens.TokensCorrupt):
                tokens.open_tokens(path)
