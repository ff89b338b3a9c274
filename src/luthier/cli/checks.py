"""The check of a data set, run here, and any check's report as people read it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from rich.text import Text

from luthier.cli.exits import Exit, Failure
from luthier.cli.output import Output
from luthier.cli.text import escape, format_count, format_size
from luthier.datasets import report as reports
from luthier.datasets.check import check_file

SHOWN_DEFAULT = 20
NAMES_READ = 10_000  # of a folder, for a suggestion
WARNINGS_BESIDE = 5  # of a valid file: what follows, a price and a question, must stay in sight


def require_file(path: Path) -> None:
    """Raise Failure when ``path`` is not a readable file."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        problem, hint = "no such file", _suggest(path)
    except IsADirectoryError:
        problem, hint = "a folder, not a file", f"name the file in it: {path / '….jsonl'}"
    except OSError as error:
        problem, hint = error.strerror or "cannot be read", "let your user read it, or name another file"
    else:
        return
    raise Failure("bad_file", f"{problem}: {path}", exit_code=Exit.USAGE, hint=hint)


def _suggest(path: Path) -> str:
    """Say what to do about a name that nothing has: the closest name beside it, else where it was looked for."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder}; this folder is {Path.cwd()}"
    entries = islice(folder.iterdir(), NAMES_READ) if os.access(folder, os.R_OK) else ()
    close = get_close_matches(path.name, [entry.name for entry in entries], n=1)
    return f"did you mean {folder / close[0]}?" if close else f"it was looked for in {folder.resolve()}"


def check(output: Output, path: Path) -> dict[str, Any]:
    """Check one file with a bar on the terminal; return the report in the API's shape, with ``path`` and ``bytes``."""
    with output.progress(f"Checking {path.name}") as advance:
        report = check_file(path, on_progress=advance)
    return {"path": str(path), "bytes": report.size_bytes, **reports.to_api(report, str(path))}


def require_valid(output: Output, path: Path) -> None:
    """Check one file before it is sent, and tell the verdict. Raises Failure, after its errors, when it is not valid."""
    report = check(output, path)
    show_beside(output, str(path), report)
    if report["valid"]:
        return
    raise Failure(
        "invalid_file",
        f"{path} is not valid, so it was not uploaded: {format_count(report['error_count'], 'error')}",
        exit_code=Exit.NEGATIVE,
        hint=f"correct the lines above, then check again with: luthier files check {path}",
        details=[] if not output.as_json else report["errors"],
    )


def show(output: Output, name: str, report: dict[str, Any], *, limit: int = SHOWN_DEFAULT) -> None:
    """Print a report, the command's answer: the verdict, then errors, then warnings, each place as ``file:line``."""
    for line in _list_lines(name, report, max_errors=limit, max_warnings=limit):
        output.line(line)


def show_beside(output: Output, name: str, report: dict[str, Any]) -> None:
    """Print a report on stderr, where the command's answer is another; only a few warnings of a valid file."""
    max_warnings = WARNINGS_BESIDE if report.get("valid") else SHOWN_DEFAULT
    for line in _list_lines(name, report, max_errors=SHOWN_DEFAULT, max_warnings=max_warnings):
        output.note(line, style=None)


def _list_lines(name: str, report: dict[str, Any], *, max_errors: int, max_warnings: int) -> Iterator[Text]:
    yield _describe(name, report)
    yield from _list_issues(name, report, kind="error", style="red", limit=max_errors)
    yield from _list_issues(name, report, kind="warning", style="yellow", limit=max_warnings)


def _describe(name: str, report: dict[str, Any]) -> Text:
    counts = [format_count(report.get("nlines") or 0, "line")]
    if report.get("bytes") is not None:
        counts.append(format_size(report["bytes"]))
    if report.get("dataset_format"):
        counts.insert(0, f"{report['dataset_format']} format")
    if not report.get("valid"):
        counts.append(format_count(report.get("error_count") or 1, "error"))
    if warnings := report.get("warning_count"):
        counts.append(format_count(warnings, "warning"))
    verdict = Text("valid", "bold green") if report.get("valid") else Text("not valid", "bold red")
    return Text.assemble((escape(name), "bold"), ": ", verdict, (f"  {', '.join(counts)}", "dim"))


def _list_issues(name: str, report: dict[str, Any], *, kind: str, style: str, limit: int) -> Iterator[Text]:
    issues: Sequence[dict[str, Any]] = report.get(f"{kind}s") or []
    hinted: set[str] = set()
    for issue in issues[:limit]:
        place = f"{name}:{issue['line']}" if issue.get("line") else name
        yield Text.assemble(
            "  ", (escape(place), "bold"), "  ", (escape(issue.get("path") or ""), "cyan"), "  ",
            (f"{kind}: " if kind == "warning" else "", style), escape(issue.get("message") or ""),
        )  # fmt: skip
        hint = issue.get("hint")
        if hint and hint not in hinted:  # the same way out is told once
            hinted.add(hint)
            yield Text.assemble("    ", ("hint: ", "cyan"), escape(hint))
    total = max(report.get(f"{kind}_count") or 0, len(issues))
    if total > limit:
        shown = min(limit, len(issues))
        yield Text(f"  … and {format_count(total - shown, f'more {kind}')}", "dim")
