"""The reference lists everything that the code has."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer

from luthier.app import build_app
from luthier.cli.main import app as cli
from luthier.settings import Settings


def test_reference_when_written_anew_then_it_is_the_same(root):
    result = subprocess.run(
        [sys.executable, root / "tools/reference.py", "--check"], capture_output=True, text=True, cwd=root
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_settings_when_one_is_read_then_it_is_in_the_reference(root):
    page = (root / "docs/reference/settings.md").read_text()
    rows = dict(re.findall(r"^\| `(LUTHIER_\w+)` \|.*\| (.+) \|$", page, re.MULTILINE))
    assert set(rows) == {f"LUTHIER_{name.upper()}" for name in Settings.model_fields}


def test_routes_when_one_is_served_then_it_is_in_the_reference(root, home):
    page = (root / "docs/reference/http.md").read_text()
    document = build_app(Settings(home=home)).openapi()
    served = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert set(re.findall(r"^\| (\w+) \| `(\S+)` \| .+ \|$", page, re.MULTILINE)) == served


def test_commands_when_one_can_be_run_then_it_is_in_the_reference_with_its_options(root):
    page = (root / "docs/reference/cli.md").read_text()
    sections = dict(re.findall(r"^## (luthier .+)\n((?:(?!^## ).*\n)*)", page, re.MULTILINE))
    commands = dict(list_commands(typer.main.get_command(cli), "luthier"))
    assert set(sections) == set(commands)
    for name, command in commands.items():
        for param in command.params:
            if param.param_type_name == "option" and not param.hidden:
                assert f"`{', '.join(param.opts)}`" in sections[name], (name, param.opts)


def list_commands(command, path):
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        if not child.hidden:
            yield from list_commands(child, f"{path} {name}")


# Each made in another way: a class of its own, a code that its class brings along, one of two, a status of its own.
HARD_TO_SEE = {
    "file_exists": 409, "upload_expired": 410, "upload_stalled": 408, "length_required": 411, "request_timeout": 408,
    "range_not_satisfiable": 416, "internal_error": 500, "missing_purpose": 422, "missing_file_name": 422,
    "training_file_not_usable": 400, "validation_file_not_usable": 400, "method_not_allowed": 405,
}  # fmt: skip


def test_errors_when_a_code_is_made_in_any_way_then_it_is_in_the_reference_with_its_status(root):
    page = (root / "docs/reference/errors.md").read_text()
    rows = {code: int(status) for code, status in re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE)}
    assert rows.items() >= HARD_TO_SEE.items()


@pytest.mark.parametrize("code", ['f"{name}_missing"', "code", '"a" + name', '"a" if name else other'])
def test_errors_when_a_code_is_put_together_then_the_tool_refuses_it(reference, tmp_path, code):
    (tmp_path / "bad.py").write_text(f"def refuse(name):\n    raise NotFound({code}, 'there is none')\n")
    (tmp_path / "luthier").mkdir()
    (tmp_path / "luthier/errors.py").write_text("class NotFound(ServiceError): ...\n")
    with pytest.raises(reference.UnreadableCode, match=r"bad\.py:2"):
        reference.find_error_codes(tmp_path)
