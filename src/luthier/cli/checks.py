"""The check of a data set, run here, and any check's report as people read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from luthier.cli.exits import Exit, Failure
from luthier.cli.output import Output
from luthier.cli.text import escape, format_count, format_size
from luthier.datasets import report as reports
from luthier.datasets.check import check_file

SHOWN_DEFAULT = 20


def require_file(path: Path) -> None:
    """Raise Failure when ``path`` is not a readable file."""
    problem = None
    if not path.exists():
        problem = "no such file"
    elif not path.is_file():
        problem = "not a file"
    else:
        try:
            path.open("rb").close()
        except OSError as error:
            problem = error.strerror or "cannot be read"
    if problem:
        raise Failure("bad_file", f"{problem}: {path}", exit_code=Exit.USAGE)


def check(output: Output, path: Path) -> dict[str, Any]:
    """Check one file with a bar on the terminal; return the report in the API's shape, with ``path`` and ``bytes``."""
    with output.progress(f"Checking {path.name}") as advance:
        report = check_file(path, on_progress=advance)
    return {"path": str(path), "bytes": report.size_bytes, **reports.to_api(report, str(path))}


def require_valid(output: Output, path: Path) -> None:
    """Check one file before it is sent. Raises Failure, after the errors were printed, when it is not valid."""
    report = check(output, path)
    if report["valid"]:
        return
    if not output.as_json:
        show(output, str(path), report)
    raise Failure(
        "invalid_file",
        f"{path} is not valid, so it was not uploaded: {format_count(report['error_count'], 'error')}",
        exit_code=Exit.NEGATIVE,
        hint=f"correct the lines above, then check again with: luthier files check {path}",
        details=[] if not output.as_json else report["errors"],
    )


def show(output: Output, name: str, report: dict[str, Any], *, limit: int = SHOWN_DEFAULT) -> None:
    """Print a report: the verdict, then errors, then warnings, each place as ``file:line``."""
    output.line(_describe(name, report))
    for kind, style in (("error", "red"), ("warning", "yellow")):
        _show_issues(output, name, report, kind=kind, style=style, limit=limit)


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


def _show_issues(output: Output, name: str, report: dict[str, Any], *, kind: str, style: str, limit: int) -> None:
    issues: Sequence[dict[str, Any]] = report.get(f"{kind}s") or []
    hinted: set[str] = set()
    for issue in issues[:limit]:
        place = f"{name}:{issue['line']}" if issue.get("line") else name
        output.line(
            Text.assemble(
                "  ", (escape(place), "bold"), "  ", (escape(issue.get("path") or ""), "cyan"), "  ",
                (f"{kind}: " if kind == "warning" else "", style), escape(issue.get("message") or ""),
            )
        )  # fmt: skip
        hint = issue.get("hint")
        if hint and hint not in hinted:  # the same way out is told once
            hinted.add(hint)
            output.line(Text.assemble("    ", ("hint: ", "cyan"), escape(hint)))
    total = max(report.get(f"{kind}_count") or 0, len(issues))
    if total > limit:
        shown = min(limit, len(issues))
        output.line(Text(f"  … and {format_count(total - shown, f'more {kind}')}", "dim"))
