"""What holds for every command: help, usage errors, JSON, exit codes, start-up."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import socket
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from luthier.cli import main
from luthier.cli.exits import MEANINGS


def list_commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from list_commands(command, (*path, name))
        else:
            yield (*path, name), command


ROOT = typer.main.get_command(main.app)
COMMANDS = dict(list_commands(ROOT))
OWN = {path: command for path, command in COMMANDS.items() if path[0] not in {"serve", "api", "supervise"}}


def show(path):
    return " ".join(path)


@pytest.mark.parametrize("path", COMMANDS, ids=show)
def test_help_when_a_command_is_asked_then_it_has_an_example_of_itself(path):
    help_text = COMMANDS[path].help
    assert "Examples:" in help_text
    assert "luthier " + " ".join(path) in help_text or path in {("ft", "events"), ("ft", "watch")}


@pytest.mark.parametrize("path", COMMANDS, ids=show)
def test_help_when_examples_are_shown_then_their_commands_and_options_exist(path):
    text = COMMANDS[path].help.partition("Examples:")[2].replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        command_line = re.split(r"(?:^|[ (])luthier ", line, maxsplit=1)[1]
        words = shlex.split(re.split(r"[|<>)]", command_line)[0])
        names, command = [], ROOT
        while hasattr(command, "commands"):
            names.append(words.pop(0))
            command = command.commands[names[-1]]
        known = {name for param in command.params for name in [*param.opts, *param.secondary_opts]}
        assert {word for word in words if re.match("-[^0-9]", word)} <= known, line  # -5 is a number


@pytest.mark.parametrize("path", OWN, ids=show)
def test_command_when_any_of_ours_then_it_has_json_and_never_takes_a_key_as_argument(path):
    options = {name for param in OWN[path].params for name in param.opts}
    assert "--json" in options
    assert not {"--api-key", "--key", "--token"} & options


@pytest.mark.parametrize("path", OWN, ids=show)
def test_help_when_an_option_is_listed_then_it_is_explained(path):
    for param in OWN[path].params:
        assert param.help, f"{show(path)}: {param.name}"
        assert param.help.endswith((".", "…", "…)")) or param.param_type_name == "argument", (
            f"{show(path)}: {param.help}"
        )


@pytest.mark.parametrize("path", OWN, ids=show)
def test_help_when_arguments_are_shown_then_by_plain_names(path):
    """``FILE…``, not ``{FILE…}...`` above and ``FILE… <list[Path]>`` below."""
    text = CliRunner().invoke(main.app, [*path, "--help"]).stdout
    arguments = [param for param in OWN[path].params if param.param_type_name == "argument"]
    names = [param.metavar if param.required else f"[{param.metavar}]" for param in arguments]
    assert text.splitlines()[0] == " ".join(["Usage: luthier", *path, "[OPTIONS]", *names])
    for argument in arguments:
        assert re.search(rf"^  {re.escape(argument.metavar)}  +\S", text, re.MULTILINE)


def test_help_when_root_is_asked_then_every_exit_code_is_told(cli):
    result = cli("--help")
    assert result.code == 0
    for code, meaning in MEANINGS.items():
        assert f"{code.value:<4} {meaning}" in result.out
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [[], ["ft"], ["files"]])
def test_run_when_no_command_is_named_then_help_is_shown(cli, arguments):
    result = cli(*arguments)
    assert result.code == 0
    assert "Commands:" in result.out


IMPORTS = """
import sys
from luthier.cli import main
sys.argv = ["luthier", *sys.argv[1:]]
try:
    main.run()
except SystemExit:
    pass
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "slow"),
    [
        (["--help"], {"httpx", "sqlalchemy", "fastapi", "pydantic", "rich", "torch"}),
        (["ft", "create", "--help"], {"httpx", "sqlalchemy", "fastapi", "pydantic", "rich", "torch"}),
        (["files", "check", "data.jsonl"], {"httpx", "sqlalchemy", "fastapi", "pydantic", "numpy", "torch"}),
        (["whoami", "--base-url", "http://127.0.0.1:9"], {"sqlalchemy", "fastapi", "pydantic", "torch"}),
    ],
)
def test_start_when_a_command_runs_then_what_is_slow_to_import_is_not(tmp_path, arguments, slow):
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    imported = set(result.stderr.splitlines()[-1].split())
    assert "luthier" in imported
    assert not slow & imported


def test_run_when_command_is_misspelt_then_the_close_one_is_suggested(cli):
    result = cli("ft", "crate")
    assert result.code == 2
    assert "Did you mean 'create'" in result.err
    assert "hint: luthier ft --help" in result.err


def test_run_when_option_is_misspelt_then_the_close_one_is_suggested(cli):
    result = cli("ft", "create", "a.jsonl", "--modle", "x")
    assert result.code == 2
    assert "--model" in result.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["files", "check", "a.jsonl", "--max-errors", "x"], "expected a whole number at least 1 and at most 100: x"),
        (["files", "check", "a.jsonl", "--max-errors", "101"], "expected a whole number"),
        (["ft", "create", "a.jsonl", "-m", "x", "--learning-rate", "fast"], "expected a number: fast"),
        (["ft", "create", "a.jsonl", "-m", "x", "--lr-scheduler", "sine"], "expected cosine or linear: sine"),
        (["ft", "create", "a.jsonl"], "Missing option '--model'"),
        (["models", "add", "x", "--hub", "a", "--folder", "b"], "one place"),
        (["keys", "create", "--name", "x", "--expires-in", "soon"], "soon"),
    ],
)
def test_run_when_a_value_is_wrong_then_it_is_named_and_the_code_is_2(cli, arguments, expected):
    result = cli(*arguments, "--json")
    assert result.code == 2
    assert expected in result.error["message"]


def test_run_when_nothing_is_configured_then_says_what_to_do(cli):
    result = cli("ft", "list")
    assert result.code == 3
    assert result.err == (
        "error: no server is configured\n"
        " hint: start a server on this machine with: luthier serve; or name an existing one with: luthier login\n"
    )
    assert cli("ft", "list", "--json").error["code"] == "not_configured"


def test_run_when_server_is_away_then_its_url_and_the_way_out_are_told(cli):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = cli("status", "--base-url", url, LUTHIER_API_KEY="lk-x")
    assert result.code == 3
    assert url in result.err
    assert "luthier serve" in result.err


def answering(status, **error):
    return lambda request: request.send_json({"error": error}, status)


@pytest.mark.parametrize(
    ("status", "code"), [(400, 4), (401, 3), (402, 5), (403, 3), (404, 4), (409, 4), (422, 4), (500, 6), (503, 6)]
)
def test_run_when_server_refuses_then_message_hint_and_code_are_its_own(cli, serve, status, code):
    answer = answering(status, code="some_code", message="it is so", hint="do this", request_id="req-1")
    with serve(answer) as peer:
        arguments = ("ft", "cancel", "ft-1", "--base-url", peer.url)
        result = cli(*arguments, LUTHIER_API_KEY="lk-x")
        as_json = cli(*arguments, "--json", LUTHIER_API_KEY="lk-x")
    assert result.code == as_json.code == code
    assert result.err.startswith("error: it is so\n hint: do this\n")
    assert as_json.error == {"code": "some_code", "message": "it is so", "hint": "do this", "request_id": "req-1"}


def test_run_when_server_names_several_problems_then_each_is_told_once(cli, serve):
    details = [
        {"param": "n_epochs", "message": "n_epochs must be from 1 to 20: 99", "hint": None},
        {"param": "suffix", "message": "too long", "hint": "shorten it"},
    ]
    with serve(answering(400, code="c", message="2 problems: …", hint="shorten it", details=details)) as peer:
        result = cli("ft", "cancel", "ft-1", "--base-url", peer.url, LUTHIER_API_KEY="lk-x")
    assert result.err == "error: n_epochs must be from 1 to 20: 99\nerror: suffix: too long\n hint: shorten it\n"


def test_run_when_it_is_another_kind_of_server_then_says_so(cli, serve):
    with serve(lambda request: request.send(200, b"<html>")) as peer:
        result = cli("status", "--base-url", peer.url, LUTHIER_API_KEY="lk-x")
    assert result.code == 3
    assert "not JSON" in result.err


HOSTILE = "a\x1b]0;owned\x07\x1b[31m\n\u202eb"


def test_run_when_server_sends_terminal_sequences_then_they_are_shown_not_obeyed(cli, serve):
    def answer(request):
        file = {"id": HOSTILE, "filename": HOSTILE, "processing_status": HOSTILE, "bytes": 1, "created_at": 0}
        request.send_json({"data": [file]} if request.path.endswith("/files") else {"error": {"message": HOSTILE}}, 200)

    with serve(answer) as peer:
        listed = cli("files", "list", "--base-url", peer.url, LUTHIER_API_KEY="lk-x")
        as_json = cli("files", "list", "--json", "--base-url", peer.url, LUTHIER_API_KEY="lk-x")
        peer.answer = answering(400, code="x", message=HOSTILE, hint=HOSTILE)
        failed = cli("files", "list", "--base-url", peer.url, LUTHIER_API_KEY="lk-x")
    assert r"a\x1b]0;owned\x07\x1b[31m\n\u202eb" in listed.out
    for text in (listed.out, failed.err, as_json.out):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert as_json.json["data"][0]["id"] == HOSTILE


def run_on_terminal(arguments, *, columns, cwd=None, **environment):
    """Run a command on a pseudo-terminal and return all that it wrote there."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier.cli", *arguments],
        stdin=child, stdout=child, stderr=child, close_fds=True, cwd=cwd,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24", **environment},
    )  # fmt: skip
    os.close(child)
    output = b""
    while True:
        try:
            block = os.read(parent, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not block:
            break
        output += block
    os.close(parent)
    process.wait(timeout=60)
    return output.decode()


def test_run_when_on_a_terminal_then_colour_unless_no_color(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    arguments = ["files", "check", "bad.jsonl"]
    assert "\x1b[1;31mnot valid" in run_on_terminal(arguments, columns=80, cwd=tmp_path)
    plain = run_on_terminal(arguments, columns=80, cwd=tmp_path, NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*3\d", plain)
    assert "not valid" in plain


@pytest.mark.parametrize("columns", [30, 50, 120])
def test_table_when_terminal_is_narrow_then_ids_are_whole_and_lines_fit(serve, columns):
    file_id = "f-0123456789abcdef"
    file = {"id": file_id, "filename": "train.jsonl", "processing_status": "COMPLETED", "bytes": 5, "created_at": 0}
    with serve(lambda request: request.send_json({"data": [file]})) as peer:
        arguments = ["files", "list", "--base-url", peer.url]
        shown = run_on_terminal(arguments, columns=columns, NO_COLOR="1", LUTHIER_API_KEY="lk-x")
    lines = [line for line in shown.replace("\x1b[0m", "").replace("\x1b[2m", "").splitlines() if line.strip()]
    assert any(file_id in line for line in lines)
    assert max(map(len, lines)) <= columns


def test_run_when_the_reader_goes_away_then_it_ends_quietly(serve):
    file = {"id": "f", "filename": "x" * 1000, "processing_status": "COMPLETED", "bytes": 5, "created_at": 0}
    with serve(lambda request: request.send_json({"data": [file] * 2000})) as peer:
        process = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m luthier.cli files list --base-url {peer.url} | head -1; exit ${{PIPESTATUS[0]}}"],
            capture_output=True, text=True, check=False, env={**os.environ, "LUTHIER_API_KEY": "lk-x"}, timeout=60,
        )  # fmt: skip
    assert process.stderr == ""
    assert process.returncode == 0


def test_run_when_a_proxy_is_set_then_this_machine_is_reached_without_it(cli, serve):
    with serve(lambda request: request.send_json({"data": []})) as peer:
        result = cli("ft", "list", "--base-url", peer.url, LUTHIER_API_KEY="lk-x", HTTP_PROXY="http://127.0.0.1:9")
    assert result.code == 0


def test_run_when_a_file_cannot_be_written_then_it_is_named_without_a_traceback(cli, serve):
    (cli.cwd / "file").write_text("in the way")
    with serve(lambda request: request.send_json({"id": "f", "filename": "a.jsonl"})) as peer:
        arguments = ("files", "download", "f", "-o", "file/below", "--base-url", peer.url)
        result = cli(*arguments, LUTHIER_API_KEY="lk-x")
    assert result.code == 2
    assert "file" in result.err


def test_check_when_a_name_looks_like_markup_then_it_is_shown_as_it_is(tmp_path):
    name = "[bold]b.jsonl"
    # An unknown key sends each row through the exact rules: long enough for a bar to appear on any machine.
    (tmp_path / name).write_text('{"text": "some words", "note": 1}\n' * 1_000_000)
    shown = run_on_terminal(["files", "check", name], columns=120, cwd=tmp_path, NO_COLOR="1")
    assert f"Checking {name}" in shown
    assert f"{name}: " in re.sub(r"\x1b\[\d*m", "", shown)


def test_version_when_asked_then_it_is_printed(cli):
    result = cli("--version")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("luthier ")


def test_json_when_printed_to_a_pipe_then_it_is_one_line(cli, serve):
    with serve(lambda request: request.send_json({"data": []})) as peer:
        result = cli("ft", "list", "--json", "--base-url", peer.url, LUTHIER_API_KEY="lk-x")
    assert json.loads(result.out) == {"data": []}
    assert result.out.count("\n") == 1
