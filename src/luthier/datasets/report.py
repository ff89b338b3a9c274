"""What a check found: counts, the format, and every problem with its line, its place and a way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

ISSUES_KEPT = 100  # of each kind; all are counted

DatasetFormat = Literal["general", "conversation", "instruction"]


class Issue(msgspec.Struct, frozen=True):
    """One problem. ``line`` counts from 1 (1 also for the file as a whole); ``path`` is a JSON path into the row."""

    line: int
    path: str
    code: str
    message: str
    hint: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result of checking one file.

    ``nlines`` counts rows; blank lines are none. ``errors`` and ``warnings`` are the first ``ISSUES_KEPT`` by line.
    """

    valid: bool
    dataset_format: DatasetFormat | None
    nlines: int
    size_bytes: int
    error_count: int = 0
    errors: list[Issue] = []
    warning_count: int = 0
    warnings: list[Issue] = []
    has_message_weights: bool = False
    has_sample_weights: bool = False
    has_tools: bool = False
    has_reasoning: bool = False
    has_parallel_tool_calls: bool = False


def to_dict(report: Report) -> dict[str, object]:
    """Return the report as plain JSON values, to be stored."""
    stored: dict[str, object] = msgspec.to_builtins(report)
    return stored


def from_dict(stored: Mapping[str, object]) -> Report:
    """Return the report that ``to_dict`` made. Raises msgspec.ValidationError when it is not one."""
    return msgspec.convert(stored, Report)


def to_api(report: Report, file_id: str) -> dict[str, object]:
    """Return ``validation_report`` as the Together clients read it; counts, errors and warnings are ours."""
    answer: dict[str, object] = {
        "valid": report.valid,
        "dataset_format": report.dataset_format,
        "nlines": report.nlines,
        "file_id": file_id,
        "dataset_has_message_weights": report.has_message_weights,
        "dataset_has_sample_weights": report.has_sample_weights,
        "dataset_has_tools": report.has_tools,
        "dataset_has_reasoning": report.has_reasoning,
        "dataset_has_parallel_tool_calls": report.has_parallel_tool_calls,
        "dataset_is_multimodal": False,  # such files are refused
        "error_count": report.error_count,
        "errors": msgspec.to_builtins(report.errors),
        "warning_count": report.warning_count,
        "warnings": msgspec.to_builtins(report.warnings),
    }
    if not report.valid:
        answer["error"] = summarise(report)
        answer["error_type"] = "INVALID_FORMAT"
    return answer


def summarise(report: Report) -> str:
    """Say the first error in one line, and how many more there are."""
    if not report.errors:
        return "no errors"
    first = report.errors[0]
    text = f"line {first.line}, {first.path}: {first.message}"
    if first.hint:
        text += f"; hint: {first.hint}"
    if report.error_count > 1:
        text += f" (and {report.error_count - 1} more)"
    return text
