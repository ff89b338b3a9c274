"""Checking a file: byte ranges spread over processes, their findings merged in the order of the file."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import msgspec

from luthier import machine
from luthier.datasets import fast, formats, lines, parsing
from luthier.datasets.report import ISSUES_KEPT, Issue, Report

PROCESSES_MAX = 4  # beyond that a disk is slower than the check
_ALONE_BYTES = 8 * 1024 * 1024  # a file up to this is checked before other processes have started


class CheckFailed(Exception):
    """A process of the check ended early: the fault of the machine or of a limit, not of the file."""


class FormatLines(msgspec.Struct):
    """How many rows have a format, and on which lines the first of them are."""

    count: int = 0
    first: list[int] = []


class Findings(msgspec.Struct):
    """What is known of a stretch of the file. ``line_count`` counts blank lines as well, ``rows`` does not."""

    line_count: int = 0
    rows: int = 0
    error_count: int = 0
    errors: list[Issue] = []
    warning_count: int = 0
    warnings: list[Issue] = []
    features: set[formats.Feature] = set()
    row_formats: dict[formats.RowFormat, FormatLines] = {}

    def add_clean_rows(self, clean_formats: Sequence[formats.RowFormat | None]) -> None:
        """Count the rows that need no closer look: their formats, line by line from the first, None for the others."""
        for name, count in Counter(clean_formats).items():
            if name is not None:
                on_lines = (line for line, found in enumerate(clean_formats, start=1) if found == name)
                self._add_format(name, count, list(islice(on_lines, ISSUES_KEPT)))
                self.rows += count

    def add_check(self, check: formats.RowCheck) -> None:
        """Take in one line that was looked at closely."""
        self.rows += not check.is_blank
        self.error_count += len(check.errors)
        self.warning_count += len(check.warnings)
        _extend(self.errors, check.errors)
        _extend(self.warnings, check.warnings)
        self.features |= check.features
        if check.format is not None:
            self._add_format(check.format, 1, [check.line])

    def _add_format(self, name: formats.RowFormat, count: int, first: list[int]) -> None:
        seen = self.row_formats.setdefault(name, FormatLines())
        seen.count += count
        if len(seen.first) < ISSUES_KEPT or first[0] < seen.first[-1]:
            seen.first = sorted(seen.first + first)[:ISSUES_KEPT]

    def add_next(self, part: Findings) -> None:
        """Take in the findings of the stretch that follows this one, whose lines were counted from 1."""
        shift = self.line_count
        _extend(self.errors, (msgspec.structs.replace(issue, line=issue.line + shift) for issue in part.errors))
        _extend(self.warnings, (msgspec.structs.replace(issue, line=issue.line + shift) for issue in part.warnings))
        for name, seen in part.row_formats.items():
            self._add_format(name, seen.count, [line + shift for line in seen.first])
        self.line_count += part.line_count
        self.rows += part.rows
        self.error_count += part.error_count
        self.warning_count += part.warning_count
        self.features |= part.features


def check_file(
    path: Path, *, processes: int | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Report:
    """Check a file row by row. ``on_progress(bytes_done, bytes_total)`` is called along the way.

    Memory does not grow with the file. Raises OSError when it cannot be read, CheckFailed when a process died.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        problem = parsing.find_file_problem(file.read(parsing.HEAD_BYTES))
    if size_bytes == 0:
        problem = Issue(1, "$", "empty_file", "the file is empty", "write at least one row")
    if problem is not None:
        return Report(
            valid=False, dataset_format=None, nlines=0, size_bytes=size_bytes, error_count=1, errors=[problem]
        )
    ranges = lines.list_ranges(size_bytes)
    findings = Findings()
    with _open_parts(path, ranges, processes or count_processes(size_bytes)) as parts:
        for (_, end), part in zip(ranges, parts, strict=True):
            findings.add_next(part)
            if on_progress is not None:
                on_progress(end, size_bytes)
    return _make_report(findings, size_bytes)


def count_processes(size_bytes: int) -> int:
    """Return how many processes a file of this size is worth."""
    if size_bytes <= _ALONE_BYTES:
        return 1
    return min(machine.count_cpus(), PROCESSES_MAX)


def check_range(file: BinaryIO, start: int, end: int) -> Findings:
    """Check the lines that begin in a byte range; they are numbered from 1."""
    findings = Findings()
    clean_formats = []
    for number, (offset, line) in enumerate(lines.read_lines(file, start, end), start=1):
        clean_format = fast.find_clean_format(line)
        clean_formats.append(clean_format)
        if clean_format is None:
            findings.add_check(formats.check_line(line, number, offset))
    findings.line_count = len(clean_formats)
    findings.add_clean_rows(clean_formats)
    return findings


def check_every_nth_range(path: Path, first: int, step: int) -> Iterator[Findings]:
    """Check ranges ``first``, ``first + step``, …: the share of one process."""
    with lines.open_file(path) as file:
        for start, end in lines.list_ranges(path.stat().st_size)[first::step]:
            yield check_range(file, start, end)


@contextmanager
def _open_parts(path: Path, ranges: list[tuple[int, int]], processes: int) -> Iterator[Iterator[Findings]]:
    if processes == 1:
        yield check_every_nth_range(path, 0, 1)
        return
    with ExitStack() as stack:
        children = [stack.enter_context(_start_child(path, index, processes)) for index in range(processes)]
        yield (_read_findings(children[index % processes]) for index in range(len(ranges)))


@contextmanager
def _start_child(path: Path, first: int, step: int) -> Iterator[subprocess.Popen[bytes]]:
    # -P: the caller's working directory is no place to import from.
    command = [sys.executable, "-P", "-m", "luthier.datasets", "check-part", str(path), str(first), str(step)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def _read_findings(child: subprocess.Popen[bytes]) -> Findings:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line.endswith(b"\n"):
        code = child.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise CheckFailed(f"a process of the check ended early with {how}")
    return _findings_decoder.decode(line)


_findings_decoder = msgspec.json.Decoder(Findings)


def _extend(kept: list[Issue], more: Iterator[Issue] | list[Issue]) -> None:
    for issue in more:
        if len(kept) >= ISSUES_KEPT:
            return
        kept.append(issue)


def _make_report(findings: Findings, size_bytes: int) -> Report:
    """Decide what only the whole file can tell: its format, and which rows have another one."""
    errors, error_count = list(findings.errors), findings.error_count
    by_first_line = sorted(findings.row_formats, key=lambda name: findings.row_formats[name].first[0])
    file_format = by_first_line[0] if by_first_line else None
    if file_format is not None and file_format not in formats.TRAINED_FORMATS:
        errors.append(formats.refuse_format(file_format, findings.row_formats[file_format].first[0]))
        error_count += 1
    elif file_format is not None:
        began = findings.row_formats[file_format].first[0]
        for other in by_first_line[1:]:
            seen = findings.row_formats[other]
            errors += [formats.refuse_mix(other, line, file_format, began) for line in seen.first]
            error_count += seen.count
    if findings.rows == 0:
        errors.append(Issue(1, "$", "no_rows", "the file has no rows, only blank lines", "write at least one row"))
        error_count += 1
    errors.sort(key=lambda issue: issue.line)
    return Report(
        valid=error_count == 0,
        dataset_format=next((name for name in formats.TRAINED_FORMATS if name == file_format), None),
        nlines=findings.rows,
        size_bytes=size_bytes,
        error_count=error_count,
        errors=errors[:ISSUES_KEPT],
        warning_count=findings.warning_count,
        warnings=findings.warnings,
        has_message_weights="message_weights" in findings.features,
        has_sample_weights="sample_weights" in findings.features,
        has_tools="tools" in findings.features,
        has_reasoning="reasoning" in findings.features,
        has_parallel_tool_calls="parallel_tool_calls" in findings.features,
    )
