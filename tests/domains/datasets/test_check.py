"""A whole file: what only the whole can tell, exact line numbers from several processes, and files of any badness."""

from __future__ import annotations

import json
import os
import signal
from itertools import accumulate
from pathlib import Path

import pytest

from luthier.datasets import check, lines, report

ROW = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
TEXT = b'{"text": "a"}\n'


@pytest.fixture
def check_bytes(tmp_path):
    def run(content: bytes, **options) -> report.Report:
        path = tmp_path / "data.jsonl"
        path.write_bytes(content)
        return check.check_file(path, **options)

    return run


def summarise(found: report.Report):
    return [(issue.line, issue.code) for issue in found.errors]


def test_good_file_when_checked_is_valid_with_its_counts(check_bytes):
    found = check_bytes(ROW * 3)
    assert found == report.Report(valid=True, dataset_format="conversation", nlines=3, size_bytes=3 * len(ROW))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", [(1, "empty_file")]),
        (b"\n \r\n\t\n", [(1, "no_rows")]),
        (b"\xef\xbb\xbf", [(1, "no_rows")]),
        (TEXT.decode().encode("utf-16"), [(1, "not_utf8")]),
        (TEXT.decode().encode("utf-16-le"), [(1, "not_utf8")]),
        (TEXT.decode().encode("utf-32"), [(1, "not_utf8")]),
        (b"\x1f\x8b\x08\x00", [(1, "not_utf8")]),
        (b"PAR1\x15\x04", [(1, "unsupported_format")]),
        (b'[{"text": "a"},\n {"text": "b"}]', [(1, "json_array")]),
        (b"\xef\xbb\xbf\n [\n", [(1, "json_array")]),
        (b'{\n  "text": "a"\n}\n', [(1, "invalid_json"), (2, "invalid_json"), (3, "invalid_json")]),
        (TEXT + b"\xff" + TEXT + TEXT, [(2, "not_utf8")]),
        (TEXT + b"\0" * 100, [(2, "nul_byte")]),
        (b"a,b\n1,2\n", [(1, "invalid_json"), (2, "invalid_json")]),
        (b"[" * 10_000, [(1, "json_array")]),
        (TEXT + b"[" * 10_000 + b"\n", [(2, "too_deep")]),
        (b'{"input": {}, "preferred_output": [], "non_preferred_output": []}\n' * 5, [(1, "unsupported_format")]),
        (b"\n" + TEXT + ROW + TEXT + ROW, [(3, "mixed_formats"), (5, "mixed_formats")]),
        (TEXT + b'{"prompt": 1, "completion": "a"}\n', [(2, "wrong_type"), (2, "mixed_formats")]),
    ],
)
def test_bad_file_when_checked_says_where_and_what(check_bytes, content, expected):
    found = check_bytes(content)
    assert not found.valid
    assert summarise(found) == expected
    assert found.error_count == len(expected)
    assert all(issue.hint for issue in found.errors)


@pytest.mark.parametrize(
    ("content", "rows", "warnings"),
    [
        (b"\xef\xbb\xbf" + TEXT + TEXT, 2, [(1, "byte_order_mark")]),
        (TEXT.replace(b"\n", b"\r\n") * 2, 2, []),
        (TEXT + TEXT.rstrip(), 2, []),
        (TEXT + b"\n \r\n" + TEXT + b"\n", 2, [(2, "blank_line"), (3, "blank_line"), (5, "blank_line")]),
    ],
)
def test_file_when_only_its_shape_is_unusual_is_valid(check_bytes, content, rows, warnings):
    found = check_bytes(content)
    assert (found.valid, found.nlines, found.dataset_format) == (True, rows, "general")
    assert [(issue.line, issue.code) for issue in found.warnings] == warnings


def test_file_when_a_line_is_200_mb_names_it_and_goes_on(tmp_path):
    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        file.write(TEXT + b'{"text": "')
        file.seek(200_000_000)  # a hole: zeros that take no room on the disk
        file.write(b'"}\n' + TEXT + b"{}\n")
    found = check.check_file(path, processes=1)
    assert summarise(found) == [(2, "line_too_long"), (4, "unknown_format")]
    assert found.nlines == 4


def test_file_when_every_line_is_bad_counts_all_and_keeps_the_first(check_bytes):
    found = check_bytes(TEXT + b"x\n" * 50_000)
    assert (found.error_count, len(found.errors)) == (50_000, report.ISSUES_KEPT)
    assert [issue.line for issue in found.errors] == list(range(2, 2 + report.ISSUES_KEPT))


def test_file_when_mixed_early_and_broken_late_keeps_the_first_by_line(check_bytes):
    found = check_bytes(TEXT + b"x\n" * 60 + ROW * 60 + b"x\n" * 60)
    assert found.error_count == 180
    assert [issue.line for issue in found.errors] == list(range(2, 102))
    assert {issue.code for issue in found.errors[60:]} == {"mixed_formats"}


def test_file_when_warned_of_often_counts_all_and_keeps_the_first(check_bytes):
    found = check_bytes(b'{"text": "a", "id": 1}\n' * 500)
    assert (found.valid, found.warning_count, len(found.warnings)) == (True, 500, report.ISSUES_KEPT)


def test_lines_when_cut_into_ranges_are_each_read_once(tmp_path):
    """Line feeds on, before and after the borders of ranges; lines that span several of them."""
    border = lines.RANGE_BYTES
    path = tmp_path / "data"
    for lengths in ([border - 1, 5], [border, 5], [border - 2, 0, 0, 5], [2 * border, 3, border], [5, 3 * border, 1]):
        expected = [b"%d" % index * length for index, length in enumerate(lengths)]
        for end in (b"", b"\n"):
            path.write_bytes(b"\n".join(expected) + end)
            content = path.read_bytes()
            with lines.open_file(path) as file:
                found = [pair for cut in lines.list_ranges(len(content)) for pair in lines.read_lines(file, *cut)]
                assert found == list(lines.read_lines(file, 0, len(content)))
            starts = [offset for offset, _ in found]
            assert starts == list(accumulate((len(line) + 1 for line in expected[:-1]), initial=0))[: len(found)]
            assert [line for _, line in found] == [line[: lines.MAX_LINE_BYTES + 2] for line in expected]


@pytest.fixture
def large_file(tmp_path):
    """A file of several ranges whose errors lie in all of them."""
    path = tmp_path / "large.jsonl"
    good = json.dumps({"prompt": "p" * 500, "completion": "é" * 200}).encode() + b"\n"
    with path.open("wb") as file:
        for number in range(1, 12_001):
            file.write(good if number % 500 else b'{"prompt": "a\xff"}\n' if number % 1000 else TEXT)
    assert path.stat().st_size > 5 * lines.RANGE_BYTES
    return path


def test_check_when_spread_over_processes_finds_the_same(large_file):
    alone = check.check_file(large_file, processes=1)
    assert summarise(alone)[:3] == [(500, "not_utf8"), (1000, "mixed_formats"), (1500, "not_utf8")]
    assert alone.error_count == 24
    assert check.check_file(large_file, processes=2) == alone
    assert check.check_file(large_file, processes=3) == alone


def test_check_when_it_runs_tells_its_progress_to_the_end(large_file):
    size = large_file.stat().st_size
    for processes in (1, 2):
        told: list[tuple[int, int]] = []
        check.check_file(large_file, processes=processes, on_progress=lambda *args: told.append(args))  # noqa: B023 - called at once
        assert told == sorted(told)
        assert told[-1] == (size, size)
        assert len(told) > 5


def _list_check_processes() -> list[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"check-part" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_check_when_a_process_dies_says_so(large_file):
    def kill_all(done, total):
        for pid in _list_check_processes():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(check.CheckFailed, match="SIGKILL"):
        check.check_file(large_file, processes=3, on_progress=kill_all)


def test_check_when_interrupted_leaves_no_process(large_file):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.check_file(large_file, processes=2, on_progress=interrupt)
    assert _list_check_processes() == []


def test_check_when_the_file_is_missing_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        check.check_file(tmp_path / "none.jsonl")


def test_report_when_stored_and_read_back_is_equal(check_bytes):
    found = check_bytes(ROW + TEXT + b'{"text": "a", "weight": 1, "id": 2}\n')
    assert report.from_dict(json.loads(json.dumps(report.to_dict(found)))) == found


def test_report_when_shown_to_clients_has_their_fields(check_bytes):
    answer = report.to_api(check_bytes(ROW), "file-1")
    assert answer["valid"] is True
    assert answer["file_id"] == "file-1"
    assert answer["dataset_format"] == "conversation"
    assert answer["nlines"] == 1
    assert "error" not in answer
    answer = report.to_api(check_bytes(ROW + b"{}\n" + TEXT), "file-1")
    assert answer["error_type"] == "INVALID_FORMAT"
    assert answer["error_count"] == 2
    assert str(answer["error"]).startswith("line 2, $: no known format")
    assert str(answer["error"]).endswith("(and 1 more)")
    assert [issue["line"] for issue in answer["errors"]] == [2, 3]
    json.dumps(answer)
