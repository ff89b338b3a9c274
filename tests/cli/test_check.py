from __future__ import annotations

import json

import pytest

GOOD = '{"prompt": "a", "completion": "b"}\n'
BAD = '{"prompt": "a"}\n'
UNKNOWN_KEY = '{"prompt": "a", "completion": "b", "note": 1}\n'


@pytest.fixture
def write(cli):
    def write(name, text):
        (cli.cwd / name).write_text(text)
        return name

    return write


def test_check_when_valid_then_a_summary_and_0(cli, write):
    result = cli("files", "check", write("a.jsonl", GOOD * 3))
    assert (result.code, result.err) == (0, "")
    assert result.out == "a.jsonl: valid  instruction format, 3 lines, 105 B\n"


def test_check_when_invalid_then_place_path_message_hint_and_1(cli, write):
    result = cli("files", "check", write("a.jsonl", GOOD + BAD + GOOD))
    assert result.code == 1
    first, issue, hint = result.out.splitlines()
    assert first.startswith("a.jsonl: not valid")
    assert first.endswith("1 error")
    assert issue.startswith("  a.jsonl:2  $.completion  ")
    assert hint.startswith("    hint: ")


def test_check_when_many_errors_then_so_many_and_the_count_of_the_rest(cli, write):
    result = cli("files", "check", write("a.jsonl", BAD * 500), "--max-errors", "3")
    lines = result.out.splitlines()
    assert lines[0].endswith("500 errors")
    assert [line.split()[0] for line in lines if ":" in line and "hint" not in line][1:] == [
        "a.jsonl:1", "a.jsonl:2", "a.jsonl:3",
    ]  # fmt: skip
    assert lines[-1] == "  … and 497 more errors"
    assert sum("hint" in line for line in lines) == 1


def test_check_when_warnings_only_then_they_are_shown_and_0(cli, write):
    result = cli("files", "check", write("a.jsonl", UNKNOWN_KEY))
    assert result.code == 0
    assert "1 warning" in result.out.splitlines()[0]
    assert "a.jsonl:1  $.note  warning:" in result.out


def test_check_when_several_files_then_all_are_checked_and_one_bad_makes_1(cli, write):
    result = cli("files", "check", write("a.jsonl", BAD), write("b.jsonl", GOOD))
    assert result.code == 1
    assert "a.jsonl: not valid" in result.out
    assert "b.jsonl: valid" in result.out


def test_check_when_json_then_the_whole_report_and_nothing_else(cli, write):
    result = cli("files", "check", write("a.jsonl", BAD * 2), write("b.jsonl", GOOD), "--json")
    assert result.code == 1
    assert result.err == ""
    assert result.json["valid"] is False
    first, second = result.json["data"]
    assert (first["path"], first["error_count"], second["valid"]) == ("a.jsonl", 2, True)
    assert [error["line"] for error in first["errors"]] == [1, 2]


def test_check_when_a_file_is_missing_then_2_and_nothing_was_checked(cli, write):
    result = cli("files", "check", write("a.jsonl", GOOD), "missing.jsonl", "--json")
    assert result.code == 2
    assert "missing.jsonl" in result.error["message"]


def test_check_when_a_folder_is_named_then_2(cli):
    result = cli("files", "check", ".")
    assert result.code == 2
    assert "not a file: ." in result.err


def test_check_when_file_holds_terminal_sequences_then_they_are_not_printed(cli, write):
    row = json.dumps({"prompt": "a", "completion": "b", "\x1b[31m\x07": 1}, ensure_ascii=False)
    result = cli("files", "check", write("a.jsonl", row + "\n\x1b]0;owned\x07\n"))
    assert result.code == 1
    assert "\x1b" not in result.out + result.err
    assert "\x07" not in result.out + result.err


@pytest.mark.parametrize(
    ("name", "told", "hint"),
    [
        ("trian.jsonl", "no such file: trian.jsonl", "did you mean train.jsonl?"),
        ("other.txt", "no such file: other.txt", "it was looked for in {cwd}"),
        ("away/train.jsonl", "no such file: away/train.jsonl", "there is no folder away; this folder is {cwd}"),
        ("folder", "a folder, not a file: folder", "name the file in it: folder/….jsonl"),
    ],
)
def test_check_when_file_is_not_there_then_the_way_out_is_told(cli, write, name, told, hint):
    write("train.jsonl", GOOD)
    (cli.cwd / "folder").mkdir()
    for command in (["files", "check"], ["files", "upload"]):
        result = cli(*command, name)
        assert (result.code, result.out) == (2, "")
        assert result.err == f"error: {told}\n hint: {hint.format(cwd=cli.cwd)}\n"


def test_check_when_parquet_then_it_is_neither_offered_nor_taken(cli, write):
    assert "parquet" not in cli("files", "check", "--help").out
    result = cli("files", "check", write("a.parquet", "PAR1" + "x" * 20 + "PAR1"))
    assert result.code == 1
    assert "expected JSONL" in result.out
