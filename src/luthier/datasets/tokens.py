"""The token file: what the trainer reads and what the price is counted from.

Layout, little-endian: a header of HEADER_BYTES, then input_ids (uint32), offsets (uint64, one more than rows),
trained (uint8) and the counts as JSON, each starting at a multiple of ALIGNMENT. The header holds the sizes and the
SHA-256 of everything, its own digest field as zeros.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import struct
import sys
import tempfile
from array import array
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

import msgspec

from luthier.datasets.publish import publish

RULES_VERSION = 3  # raise it whenever the same file, tokenizer and settings would give other tokens
LINES_KEPT = 100  # line numbers of dropped and truncated rows that are named; all are counted
HEADER_BYTES = 128
ALIGNMENT = 64

_MAGIC = b"LUTHTOK\x01"
_HEADER = struct.Struct("<8sQQQ32s")  # magic, rows, tokens, bytes of the counts, SHA-256
_DIGEST_AT = 32
_COPY_BYTES = 1024 * 1024

assert sys.byteorder == "little", "token files are mapped as they are, and they are little-endian"


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What tokenising found. ``rows`` are all rows of the data; the token file holds ``used_rows`` of them.

    A row without a trainable token, after truncation to the maximum length, is dropped. ``tokens`` and
    ``trained_tokens`` are sums over the used rows. A row that was cut and then dropped counts as both.
    ``packs`` is how many sequences of the maximum length the used rows are packed into.
    """

    rows: int
    used_rows: int
    dropped_rows: int
    dropped_lines: list[int]
    truncated_rows: int
    truncated_lines: list[int]
    tokens: int
    trained_tokens: int
    longest_row_tokens: int
    packs: int


class TokensCorrupt(Exception):
    """The token file is not whole; names the file and what does not fit."""


class TokenFile(NamedTuple):
    """A mapped token file. Row ``i`` is ``input_ids[offsets[i]:offsets[i + 1]]``.

    ``trained`` is 1 where the loss counts the token. The views keep the mapping alive; writing to them
    changes this process's copy only.
    """

    input_ids: memoryview  # "I"
    trained: memoryview  # "B"
    offsets: memoryview  # "Q", rows + 1 of them
    counts: Counts


class _Sections(NamedTuple):
    """Where each part of the file begins, and where the file ends."""

    input_ids: int
    offsets: int
    trained: int
    counts: int
    end: int


def _lay_out(rows: int, tokens: int, counts_bytes: int) -> _Sections:
    offsets = _align(HEADER_BYTES + 4 * tokens)
    trained = _align(offsets + 8 * (rows + 1))
    counts = _align(trained + tokens)
    return _Sections(HEADER_BYTES, offsets, trained, counts, counts + counts_bytes)


def _align(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def make_key(
    file_sha256: str,
    tokenizer_digest: str,
    max_seq_length: int,
    train_on_inputs: bool | Literal["auto"],  # noqa: FBT001 - positional by contract
) -> str:
    """Return the name under which the tokens of these inputs are kept: equal inputs, equal tokens."""
    parts = [RULES_VERSION, file_sha256, tokenizer_digest, max_seq_length, train_on_inputs]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class TokenWriter:
    """Writes rows as they come, with flat memory; the file appears, whole, when ``finish`` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.rows = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._main = stack.enter_context(publish(self._path))
            self._file = stack.enter_context(self._main.open("w+b"))
            self._file.write(bytes(HEADER_BYTES))
            # Parts of unknown size that come after the first: beside the file, where there is room for them.
            parts = [stack.enter_context(tempfile.TemporaryFile(dir=self._path.parent)) for _ in range(2)]
            self._offsets_file, self._trained_file = parts
            self._offsets_file.write(array("Q", [0]).tobytes())
            self._stack = stack.pop_all()
        return self

    def add(self, input_ids: list[int], trained: bytes | bytearray) -> None:
        """Append a row; ``trained`` has one byte, 0 or 1, for each token."""
        assert len(input_ids) == len(trained), f"{len(input_ids)} tokens, {len(trained)} marks"
        self._file.write(array("I", input_ids).tobytes())
        self._trained_file.write(trained)
        self._offset += len(input_ids)
        self._offsets_file.write(self._offset.to_bytes(8, "little"))
        self.rows += 1

    def finish(self, counts: Counts) -> None:
        """Write the rest, then the header; nothing may be added after it."""
        encoded = msgspec.json.encode(counts)
        sections = _lay_out(self.rows, self._offset, len(encoded))
        for part, start in ((self._offsets_file, sections.offsets), (self._trained_file, sections.trained)):
            part.seek(0)
            self._pad(start)
            shutil.copyfileobj(part, self._file, _COPY_BYTES)
        self._pad(sections.counts)
        self._file.write(encoded)
        assert self._file.tell() == sections.end, f"{self._file.tell()} bytes written, {sections.end} laid out"
        header = (_MAGIC, self.rows, self._offset, len(encoded))
        self._file.seek(0)
        self._file.write(_HEADER.pack(*header, bytes(32)))
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").digest()
        self._file.seek(0)
        self._file.write(_HEADER.pack(*header, digest))
        self._file.flush()

    def _pad(self, position: int) -> None:
        self._file.write(bytes(position - self._file.tell()))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, traceback)


def open_tokens(path: Path) -> TokenFile:
    """Map a token file after checking that it is whole. Raises TokensCorrupt, or OSError."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes < HEADER_BYTES:
            raise TokensCorrupt(f"{path} has {size_bytes} bytes, fewer than a header")
        # A private copy: torch wants writable memory, and nothing here writes to it.
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    magic, rows, tokens, counts_bytes, digest = _HEADER.unpack(mapped[: _HEADER.size])
    if magic != _MAGIC:
        raise TokensCorrupt(f"{path} does not start as a token file: {magic!r}")
    sections = _lay_out(rows, tokens, counts_bytes)
    if sections.end != size_bytes:
        raise TokensCorrupt(f"{path} has {size_bytes} bytes; its header says {sections.end}")
    if _digest_without_itself(mapped) != digest:
        raise TokensCorrupt(f"{path} was changed after it was written: its checksum differs")
    return TokenFile(
        input_ids=mapped[sections.input_ids : sections.input_ids + 4 * tokens].cast("I"),
        trained=mapped[sections.trained : sections.trained + tokens],
        offsets=mapped[sections.offsets : sections.offsets + 8 * (rows + 1)].cast("Q"),
        counts=msgspec.json.decode(mapped[sections.counts : sections.end], type=Counts),
    )


def _digest_without_itself(mapped: memoryview) -> bytes:
    digest = hashlib.sha256(mapped[:_DIGEST_AT])
    digest.update(bytes(32))
    digest.update(mapped[_DIGEST_AT + 32 :])
    return digest.digest()
