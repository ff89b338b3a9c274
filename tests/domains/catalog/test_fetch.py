from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest
from safetensors.numpy import load_file, save

from luthier import faults
from luthier.catalog import fetch, folders
from luthier.catalog.builtin_models import FACTS, TINY
from luthier.catalog.refusal import FetchRefused
from luthier.catalog.schemas import FetchOrder, FetchResult

TINY_ORDER = FetchOrder(name=TINY, source="builtin", reference=TINY)


def folder_order(path) -> FetchOrder:
    return FetchOrder(name="acme/model", source="folder", reference=str(path))


def start(tmp_path, order, number=0, **environment) -> subprocess.Popen:
    """Start the command as the supervisor does."""
    (tmp_path / "order.json").write_bytes(msgspec.json.encode(order))
    command = [sys.executable, "-m", "luthier.catalog", "fetch", str(tmp_path / "order.json")]
    command += ["--models-dir", str(tmp_path / "models"), "--private-dir", str(tmp_path / "private")]
    command += ["--result", str(tmp_path / f"result-{number}.json")]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)


def finish(tmp_path, process, number=0) -> FetchResult:
    """Wait for a process that ends by itself and read its answer."""
    _, complaints = process.communicate(timeout=120)
    assert process.returncode in (0, 3), complaints
    result = msgspec.json.decode((tmp_path / f"result-{number}.json").read_bytes(), type=FetchResult)
    assert (process.returncode == 3) == (result.error is not None)
    return result


def list_visible(models_dir):
    """Return what a reader of the models directory sees: the folders with a name of their own."""
    return sorted(path.name for path in models_dir.glob("*/*") if not path.name.startswith("."))


def test_command_when_tiny_is_ordered_answers_with_a_whole_folder(tmp_path):
    result = finish(tmp_path, start(tmp_path, TINY_ORDER))
    assert result.order == TINY_ORDER
    assert result.fetched.facts == FACTS[TINY]
    assert folders.check_folder(tmp_path / "models" / "luthier--tiny" / result.fetched.path) == FACTS[TINY]
    identity = folders.identify(tmp_path / result.fetched.path)
    assert (identity.revision, identity.size_bytes) == (result.fetched.revision, result.fetched.size_bytes)


def test_command_when_two_run_at_once_both_answer_with_the_same_folder(tmp_path):
    processes = [start(tmp_path, TINY_ORDER, number) for number in range(2)]
    results = [finish(tmp_path, process, number) for number, process in enumerate(processes)]
    assert results[0] == results[1]
    assert len(list_visible(tmp_path / "models")) == 1


def test_command_when_killed_before_publishing_shows_nothing_and_succeeds_the_next_time(tmp_path):
    process = start(tmp_path, TINY_ORDER, LUTHIER_FAULTS="catalog.before_publish")
    process.communicate(timeout=120)
    assert process.returncode == faults.EXIT_CODE
    assert list_visible(tmp_path / "models") == []
    assert not (tmp_path / "result-0.json").exists()
    assert finish(tmp_path, start(tmp_path, TINY_ORDER)).fetched.facts == FACTS[TINY]
    assert not (tmp_path / "models" / "luthier--tiny" / ".staging").exists()


def test_command_when_refused_answers_with_code_message_and_way_out(tmp_path, model_folder):
    (model_folder / "tokenizer.json").unlink()
    error = finish(tmp_path, start(tmp_path, folder_order(model_folder))).error
    assert error.code == "model_tokenizer_missing"
    assert error.message == f"folder {model_folder}: there is no tokenizer.json"
    assert "AutoTokenizer" in error.hint
    assert error.is_final


def test_command_when_the_extra_is_missing_says_what_to_install(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "numpy.py").write_text("raise ModuleNotFoundError('No module named numpy', name='numpy')")
    error = finish(tmp_path, start(tmp_path, TINY_ORDER, PYTHONPATH=str(blocked))).error
    assert error.code == "extra_missing"
    assert "numpy" in error.message
    assert "luthier[train]" in error.hint


def test_fetch_when_repeated_keeps_the_folder(tmp_path):
    first = fetch.fetch(TINY_ORDER, tmp_path, private_dir=tmp_path / "private")
    stamp = (tmp_path / first.path).stat().st_ino
    assert fetch.fetch(TINY_ORDER, tmp_path, private_dir=tmp_path / "private") == first
    assert (tmp_path / first.path).stat().st_ino == stamp


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"{}"), lambda path: path.unlink()])
def test_fetch_when_the_folder_was_damaged_makes_it_whole(tmp_path, name, damage):
    first = fetch.fetch(TINY_ORDER, tmp_path, private_dir=tmp_path / "private")
    damage(tmp_path / first.path / name)
    assert fetch.fetch(TINY_ORDER, tmp_path, private_dir=tmp_path / "private") == first
    assert folders.check_folder(tmp_path / first.path) == FACTS[TINY]


def test_fetch_when_source_folder_changes_later_keeps_what_was_fetched(tmp_path, model_folder):
    first = fetch.fetch(folder_order(model_folder), tmp_path / "models", private_dir=tmp_path / "private")
    weights = load_file(model_folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    (model_folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))  # in place
    assert folders.identify(tmp_path / first.path).revision == first.revision
    second = fetch.fetch(folder_order(model_folder), tmp_path / "models", private_dir=tmp_path / "private")
    assert second.revision != first.revision
    assert len(list_visible(tmp_path / "models")) == 2


def test_fetch_when_folder_holds_more_copies_only_what_belongs_to_the_model(tmp_path, model_folder):
    (model_folder / "LICENSE.md").write_text("free")
    (model_folder / "modeling_acme.py").write_text("raise SystemExit")
    (model_folder / "training_args.bin").write_bytes(b"\x80\x04")
    fetched = fetch.fetch(folder_order(model_folder), tmp_path / "models", private_dir=tmp_path / "private")
    names = {path.name for path in (tmp_path / fetched.path).iterdir()}
    assert "LICENSE.md" in names
    assert not names & {"modeling_acme.py", "training_args.bin"}


def test_fetch_when_refused_leaves_no_folder(tmp_path, model_folder, edit_json):
    edit_json(model_folder / "config.json", auto_map={"AutoConfig": "x.Y"})
    with pytest.raises(FetchRefused):
        fetch.fetch(folder_order(model_folder), tmp_path / "models", private_dir=tmp_path / "private")
    assert [path.name for path in (tmp_path / "models" / "acme--model").iterdir()] == [".lock"]


def test_fetch_when_source_folder_is_not_there_says_so(tmp_path):
    with pytest.raises(FetchRefused, match="no such folder"):
        fetch.fetch(folder_order(tmp_path / "nowhere"), tmp_path / "models", private_dir=tmp_path / "private")


@pytest.mark.parametrize("how", ["folder", "link to the folder", "link in the folder"])
def test_fetch_when_a_folder_leads_to_what_other_projects_own_refuses(tmp_path, model_folder, how):
    """The server reads what its user may not: another project's run is a model folder, too."""
    run = tmp_path / "private" / "runs" / "ft-1"
    run.parent.mkdir(parents=True)
    model_folder.rename(run)
    place = tmp_path / "place"
    if how == "link to the folder":
        place.symlink_to(run)
    elif how == "link in the folder":
        place.mkdir()
        for file in run.iterdir():
            (place / file.name).symlink_to(file)
    with pytest.raises(FetchRefused) as caught:
        order = folder_order(run if how == "folder" else place)
        fetch.fetch(order, tmp_path / "models", private_dir=tmp_path / "private")
    assert caught.value.code == "model_folder_private"
    assert list_visible(tmp_path / "models") == []
