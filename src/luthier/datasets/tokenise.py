"""Tokenising: a checked file, through a model's tokenizer and chat template, into a token file.

What is trained, by format: of ``messages`` the assistant's turns, of ``prompt`` + ``completion`` the completion, of
``text`` everything. A model that has a chat template sees a prompt and its completion as a user's message
and the assistant's answer, as it will when it is used; for one that has none they are joined as they stand.
``text``, and what is joined, ends with the end-of-sequence token. ``train_on_inputs`` true trains the inputs too;
``auto`` and false are the same: ``text`` has no inputs that could be left out. The first token of a row is never
trained: nothing stands before it that could predict it.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import tokenizers

from luthier.datasets import chat, formats, lines, parsing
from luthier.datasets.chat import Rendered, Span
from luthier.datasets.packing import count_packs
from luthier.datasets.report import Issue
from luthier.datasets.tokens import LINES_KEPT, Counts, TokenWriter
from luthier.errors import InvalidRequest

_BATCH_ROWS = 256
_BATCH_CHARACTERS = 512 * 1024  # bounds memory: an encoding takes some hundred bytes a token


class Sample(NamedTuple):
    """One row as tokens, before it is cut; ``trained`` has one byte, 0 or 1, a token."""

    input_ids: list[int]
    trained: bytearray


class Tokeniser:
    """A model's tokenizer with the model's way to write rows."""

    def __init__(self, model_dir: Path, *, max_seq_length: int) -> None:
        """Load ``tokenizer.json``, its configuration and the chat template. Raises OSError, or InvalidRequest."""
        self._max_seq_length = max_seq_length
        self._tokenizer = tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        config = _read_config(model_dir)
        special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        eos = chat.get_token_text(config.get("eos_token"))
        self._eos_id = None if eos is None else self._tokenizer.token_to_id(eos)
        self._template = chat.load_template(model_dir, config, [*special, *([eos] if eos else [])])

    def render(self, row: formats.Row, *, train_on_inputs: bool) -> Rendered:
        """Return the text of a row and what of it is trained. Raises chat.TemplateProblem."""
        if isinstance(row, formats.Text):
            return Rendered(row.text, [(0, len(row.text))] if row.weight else [], is_chat=False)
        if isinstance(row, formats.Instruction):
            if self._template is None:
                text = row.prompt + row.completion
                start = 0 if train_on_inputs else len(row.prompt)
                return Rendered(text, [(start, len(text))] if row.weight else [], is_chat=False)
            row = _as_conversation(row)
        if self._template is None:
            raise chat.TemplateProblem(
                "the base model has no chat template, only rows of prompt and completion, or text, fit it"
            )
        return self._template.apply(row, train_on_inputs=train_on_inputs, measure=self._measure)

    def _measure(self, text: str) -> int:
        """Return how many characters of a chat's text are kept."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return len(text) if len(offsets) <= self._max_seq_length else offsets[self._max_seq_length - 1][1]

    def encode(self, rows: list[Rendered]) -> list[Sample]:
        """Return the tokens of rendered rows, all of one file and so all chats or none, in their order."""
        is_chat = rows[0].is_chat
        # A template writes every special token itself; for plain text the tokenizer adds what its model expects.
        encodings = self._tokenizer.encode_batch([row.text for row in rows], add_special_tokens=not is_chat)
        samples = [_mark(encoding, row.trained) for encoding, row in zip(encodings, rows, strict=True)]
        return samples if is_chat else [self._close(*pair) for pair in zip(samples, rows, strict=True)]

    def _close(self, sample: Sample, row: Rendered) -> Sample:
        """End a row with the end-of-sequence token, trained when the row's last character is."""
        if self._eos_id is None or not sample.input_ids:
            return sample
        if sample.input_ids[-1] == self._eos_id:  # the row's own text ends with it
            return sample
        is_trained = bool(row.trained) and row.trained[-1][1] == len(row.text)
        return Sample([*sample.input_ids, self._eos_id], sample.trained + bytes([is_trained]))


def _read_config(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return config


def _as_conversation(row: formats.Instruction) -> formats.Conversation:
    messages = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.completion}]
    return formats.Conversation(messages, None, row.weight)


def _mark(encoding: tokenizers.Encoding, spans: list[Span]) -> Sample:
    """Mark the tokens that cover a character of a trained span; ``spans`` are ordered.

    Tokens that the tokenizer added are not trained in front, where nothing predicts them, and are left out at the end.
    """
    # Characters, half-open, in order. Some tokenizers trim white space off them: it then stands at (end, end). What
    # was added stands at (0, 0).
    offsets, is_added = encoding.offsets, encoding.special_tokens_mask
    count = len(offsets)
    while count and is_added[count - 1]:
        count -= 1
    trained = bytearray(count)
    for start, end in spans:
        first = bisect_right(offsets, start, hi=count, key=_get_end)
        last = bisect_left(offsets, end, lo=first, hi=count, key=_get_start)
        while last < count and offsets[last] == (end, end):
            last += 1
        trained[first:last] = b"\1" * (last - first)
    return Sample(encoding.ids[:count], trained)


def _get_start(offset: tuple[int, int]) -> int:
    return offset[0]


def _get_end(offset: tuple[int, int]) -> int:
    return offset[1]


class _Tally:
    """Counts rows while they are written."""

    def __init__(self, max_seq_length: int) -> None:
        self._max_seq_length = max_seq_length
        self.rows = 0
        self._used = self._dropped = self._truncated = self._tokens = self._trained = 0
        self._rows_by_length: Counter[int] = Counter()
        self._dropped_lines: list[int] = []
        self._truncated_lines: list[int] = []

    def cut(self, sample: Sample, line: int) -> Sample | None:
        """Count a row and return what the trainer gets of it; None when nothing of it is trained."""
        self.rows += 1
        if len(sample.input_ids) > self._max_seq_length:
            self._truncated += 1
            if len(self._truncated_lines) < LINES_KEPT:
                self._truncated_lines.append(line)
            sample = Sample(sample.input_ids[: self._max_seq_length], sample.trained[: self._max_seq_length])
        if sample.trained:
            sample.trained[0] = 0  # nothing stands before the first token that could predict it
        trained = sample.trained.count(1)
        if not trained:
            self._dropped += 1
            if len(self._dropped_lines) < LINES_KEPT:
                self._dropped_lines.append(line)
            return None
        self._used += 1
        self._tokens += len(sample.input_ids)
        self._trained += trained
        self._rows_by_length[len(sample.input_ids)] += 1
        return sample

    def get_counts(self) -> Counts:
        """Return the counts. Raises InvalidRequest when no row is left."""
        if not self._used:
            cut = f", and {self._truncated} rows were cut at {self._max_seq_length} tokens" if self._truncated else ""
            raise InvalidRequest(
                "no_trainable_token",
                f"none of the {self.rows} rows has a token to train on{cut}",
                hint="raise max_seq_length" if cut else "give weight 1 to what the model should learn",
            )
        return Counts(
            rows=self.rows,
            used_rows=self._used,
            dropped_rows=self._dropped,
            dropped_lines=self._dropped_lines,
            truncated_rows=self._truncated,
            truncated_lines=self._truncated_lines,
            tokens=self._tokens,
            trained_tokens=self._trained,
            longest_row_tokens=max(self._rows_by_length),
            packs=count_packs(self._rows_by_length, self._max_seq_length),
        )


def tokenise_file(
    path: Path, model_dir: Path, out: Path, *, max_seq_length: int, train_on_inputs: bool | Literal["auto"]
) -> Counts:
    """Write the token file of a data file and return its counts. Memory does not grow with the file.

    Raises OSError, or InvalidRequest when the data, or data and model together, are at fault: a row that ``formats`` refuses,
    one that the chat template cannot render, no token to train on.
    """
    tokeniser = Tokeniser(model_dir, max_seq_length=max_seq_length)
    tally = _Tally(max_seq_length)
    rows = _render_rows(path, tokeniser, train_on_inputs=train_on_inputs is True)
    with TokenWriter(out) as writer:
        for batch in _batch(rows):
            samples = tokeniser.encode([rendered for _, rendered in batch])
            for (line, _), sample in zip(batch, samples, strict=True):
                kept = tally.cut(sample, line)
                if kept is not None:
                    writer.add(kept.input_ids, kept.trained)
        counts = tally.get_counts()
        writer.finish(counts)
    return counts


def _batch(rows: Iterator[tuple[int, Rendered]]) -> Iterator[list[tuple[int, Rendered]]]:
    """Group rows so that the tokenizer has work for all its threads and memory stays bounded."""
    batch: list[tuple[int, Rendered]] = []
    characters = 0
    for line, rendered in rows:
        batch.append((line, rendered))
        characters += len(rendered.text)
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _render_rows(path: Path, tokeniser: Tokeniser, *, train_on_inputs: bool) -> Iterator[tuple[int, Rendered]]:
    """Yield line number and text of each row. Raises InvalidRequest at the first that is not fit for it."""
    for line, row in read_rows(path):
        try:
            yield line, tokeniser.render(row, train_on_inputs=train_on_inputs)
        except chat.TemplateProblem as error:
            hint = "choose another base model, or change the row"
            raise InvalidRequest("chat_template", f"line {line}: {error}", hint=hint) from error


def read_rows(path: Path) -> Iterator[tuple[int, formats.Row]]:
    """Yield line number and row of each row, by the rules of the check. Raises InvalidRequest at the first error."""
    with lines.open_file(path) as file:
        problem = parsing.find_file_problem(file.read(parsing.HEAD_BYTES))
        if problem is not None:
            raise _refuse(problem)
        began_with: tuple[formats.RowFormat, int] | None = None
        for checked in _check_lines(file, path.stat().st_size):
            if checked.errors:
                raise _refuse(checked.errors[0])
            assert checked.format is not None
            file_format, began = began_with = began_with or (checked.format, checked.line)
            if checked.format != file_format:
                raise _refuse(formats.refuse_mix(checked.format, checked.line, file_format, began))
            if checked.row is None:
                raise _refuse(formats.refuse_format(checked.format, checked.line))
            yield checked.line, checked.row


def _check_lines(file: BinaryIO, size_bytes: int) -> Iterator[formats.RowCheck]:
    for number, (offset, line) in enumerate(lines.read_lines(file, 0, size_bytes), start=1):
        checked = formats.check_line(line, number, offset)
        if not checked.is_blank:
            yield checked


def _refuse(issue: Issue) -> InvalidRequest:
    return InvalidRequest("invalid_row", f"line {issue.line}, {issue.path}: {issue.message}", hint=issue.hint)
