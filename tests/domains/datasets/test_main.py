"""The commands, as the supervisor starts them: result files, exit codes, memory limits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from luthier.datasets import report, tokens

CHAT = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]}
MIB = 1024**2


def run(*arguments):
    command = [sys.executable, "-m", "luthier.datasets", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_check_when_the_file_is_good_writes_its_report(tmp_path, write_rows):
    done = run("check", write_rows([CHAT]), "--out", tmp_path / "report.json", "--memory-bytes", 256 * MIB)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = report.from_dict(json.loads((tmp_path / "report.json").read_text()))
    assert (found.valid, found.nlines) == (True, 1)


def test_check_when_the_file_is_bad_writes_its_report_too(tmp_path, write_rows):
    assert run("check", write_rows([CHAT, {}]), "--out", tmp_path / "report.json").returncode == 0
    found = report.from_dict(json.loads((tmp_path / "report.json").read_text()))
    assert (found.valid, found.errors[0].line) == (False, 2)


def test_check_when_large_keeps_within_its_memory(tmp_path):
    """Lines that are costly to hold, in every range, under the least limit that the settings allow."""
    path = tmp_path / "data.jsonl"
    hostile = b'{"text": "a", "x": [' + b"[]," * 1_300_000 + b"[]]}\n"
    path.write_bytes((b'{"text": "' + b"a" * 3_000_000 + b'"}\n' + hostile) * 2)
    done = run("check", path, "--out", tmp_path / "report.json", "--memory-bytes", 256 * MIB)
    assert (done.returncode, done.stderr) == (0, "")
    found = report.from_dict(json.loads((tmp_path / "report.json").read_text()))
    assert found.nlines == 4
    assert all((issue.line % 2, issue.code) == (0, "row_too_large") for issue in found.errors)


def test_check_when_memory_is_short_for_a_row_names_the_row(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(CHAT).encode() + b'\n{"text": "a", "x": [' + b"{}," * 1_300_000 + b"{}]}\n")
    done = run("check", path, "--out", tmp_path / "report.json", "--memory-bytes", 64 * MIB)
    assert (done.returncode, done.stderr) == (0, "")
    found = report.from_dict(json.loads((tmp_path / "report.json").read_text()))
    assert [(issue.line, issue.code) for issue in found.errors] == [(2, "row_too_large")]


@pytest.mark.parametrize("memory_mib", [3, 12, 14, 16, 18, 20])
def test_check_when_memory_is_short_for_itself_never_blames_the_file(tmp_path, write_rows, memory_mib):
    path = write_rows([{"text": "a" * 1000}] * 4000)
    out = tmp_path / "report.json"
    done = run("check", path, "--out", out, "--memory-bytes", memory_mib * MIB)
    if out.exists():
        assert report.from_dict(json.loads(out.read_text())).valid
    assert (done.returncode == 0) == out.exists()
    assert done.returncode != 3


def test_check_when_memory_is_short_from_the_start_fails(tmp_path, write_rows):
    path = write_rows([{"text": "a" * 3_000_000}])  # not even the line can be read
    done = run("check", path, "--out", tmp_path / "report.json", "--memory-bytes", MIB)
    assert done.returncode == 1
    assert "memory" in done.stderr
    assert not (tmp_path / "report.json").exists()


def test_check_when_the_file_is_missing_fails_in_one_line(tmp_path):
    done = run("check", tmp_path / "none", "--out", tmp_path / "report.json")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "none" in done.stderr


def tokenise(tmp_path, path, model_dir, *, max_seq_length=512, memory_bytes=512 * MIB):
    return run(
        "tokenise",
        path,
        *("--model-dir", model_dir),
        *("--max-seq-length", max_seq_length),
        *("--train-on-inputs", "auto"),
        *("--out", tmp_path / "out.tokens"),
        *("--result", tmp_path / "result.json"),
        *("--memory-bytes", memory_bytes),
    )


def test_tokenise_when_the_data_fit_writes_tokens_and_counts(tmp_path, write_rows, make_model):
    done = tokenise(tmp_path, write_rows([CHAT] * 3000), make_model("chatml"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    counts = json.loads((tmp_path / "result.json").read_text())["counts"]
    assert counts["rows"] == 3000
    assert counts["tokens"] == len(tokens.open_tokens(tmp_path / "out.tokens").input_ids)


def test_tokenise_when_the_data_are_at_fault_exits_3_and_says_how(tmp_path, write_rows, make_model):
    done = tokenise(tmp_path, write_rows([CHAT]), make_model("chatml"), max_seq_length=2)
    assert (done.returncode, done.stderr) == (3, "")
    error = json.loads((tmp_path / "result.json").read_text())["error"]
    assert error["code"] == "no_trainable_token"
    assert error["message"]
    assert error["hint"]
    assert not (tmp_path / "out.tokens").exists()


def test_tokenise_when_the_model_folder_is_missing_is_not_the_datas_fault(tmp_path, write_rows):
    done = tokenise(tmp_path, write_rows([CHAT]), tmp_path / "none")
    assert done.returncode not in {0, 3}
    assert not (tmp_path / "result.json").exists()
