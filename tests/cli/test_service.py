"""The commands against a real service: api, supervisor and checks are real, only the worker trains nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from server import running

MODEL = "luthier/tiny"
DEADLINE_S = 120
MERGED_FILES = {"config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service whose workers are ``stub_worker.py``; its other subprocesses are real."""
    folder = tmp_path_factory.mktemp("service")
    stub = folder / "python"
    worker = Path(__file__).with_name("stub_worker.py")
    stub.write_text(
        f'#!/bin/sh\n[ "$2" = luthier.training ] && exec {sys.executable} {worker} "$3"\nexec {sys.executable} "$@"\n'
    )
    stub.chmod(0o755)
    environment = {"LUTHIER_WORKER_PYTHON": str(stub), "LUTHIER_DISK_RESERVE_BYTES": "0"}
    with running(folder / "home", environment=environment) as server:
        yield server


@pytest.fixture
def luthier(cli, service):
    """The command line, configured for the service by its environment."""
    return replace(cli, environment={"LUTHIER_BASE_URL": service.base_url, "LUTHIER_API_KEY": service.api_key})


@pytest.fixture(scope="module")
def finished_job(service, make_cli, tmp_path_factory):
    """The id of a job that completed."""
    folder = tmp_path_factory.mktemp("finished")
    cli = make_cli(folder, folder, {"LUTHIER_BASE_URL": service.base_url, "LUTHIER_API_KEY": service.api_key})
    job = create_job(cli)
    assert cli("watch", job["id"]).code == 0
    return job["id"]


def write_rows(luthier, name="train.jsonl", *, rows=30, tag=""):
    """Write a valid file whose content no other test has."""
    tag = tag or name + str(luthier.cwd)
    lines = [{"messages": [{"role": "user", "content": f"{tag} {row}"}, {"role": "assistant", "content": "yes " * row}]}
             for row in range(1, rows + 1)]  # fmt: skip
    (luthier.cwd / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def wait_for(luthier, *arguments, until):
    """Repeat a command with --json until its answer is as wanted."""
    deadline = time.monotonic() + DEADLINE_S
    while not until(answer := luthier(*arguments, "--json").json):
        assert time.monotonic() < deadline, answer
    return answer


def create_job(luthier, *options, name="train.jsonl"):
    return luthier("ft", "create", write_rows(luthier, name), "-m", MODEL, *options, "--json").json


def test_login_when_key_is_good_then_it_is_stored_privately_and_used(cli, service):
    result = cli("login", "--base-url", f"{service.base_url}/v1", stdin=service.api_key + "\n")
    assert result.code == 0
    assert service.api_key not in result.out + result.err
    path = cli.home / "credentials.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text()) == {"base_url": service.base_url, "api_key": service.api_key, "is_login": True}
    assert cli("whoami", "--json").json["project_slug"] == "default"


def test_login_when_key_is_wrong_then_it_is_not_stored(cli, service):
    result = cli("login", "--base-url", service.base_url, stdin="lk-wrong\n")
    assert result.code == 3
    assert "lk-wrong" not in result.out + result.err
    assert not (cli.home / "credentials.json").exists()
    assert cli("login", "--base-url", service.base_url, stdin="").code == 2


def test_login_when_on_a_terminal_then_the_key_is_not_echoed(cli, service):
    arguments = ["login", "--base-url", service.base_url]
    shown, code = talk(cli, arguments, [("API key", service.api_key + "\n")])
    assert code == 0
    assert service.api_key not in shown
    assert "Default" in shown


def test_run_when_key_was_revoked_then_it_says_so_and_3(luthier):
    key = luthier("keys", "create", "--name", "temporary", "--json").json
    mine = replace(luthier, environment={**luthier.environment, "LUTHIER_API_KEY": key["secret"]})
    assert mine("whoami").code == 0
    assert luthier("keys", "revoke", key["id"]).code == 0
    result = mine("whoami", "--json")
    assert result.code == 3
    assert result.error["code"] == "invalid_api_key"
    (listed,) = [one for one in luthier("keys", "list", "--json").json["data"] if one["id"] == key["id"]]
    assert listed["revoked_at"]
    assert "secret" not in listed
    assert key["secret"] not in luthier("keys", "list").out


def test_keys_create_when_piped_then_stdout_is_the_key_alone(luthier):
    result = luthier("keys", "create", "--name", "ci", "--expires-in", "2h")
    assert re.fullmatch(r"lk-[\w-]{43}\n", result.out)
    assert "until" in luthier("keys", "list").out


def test_status_when_service_runs_then_supervisor_and_slots_are_there(luthier, service):
    answer = wait_for(luthier, "status", until=lambda answer: answer["supervisors"])
    assert answer["slots"] >= 1
    assert service.base_url in luthier("status").out


def test_models_when_listed_shown_added_and_removed_then_the_catalog_follows(luthier):
    assert MODEL in luthier("models", "list").out
    shown = luthier("models", "show", MODEL)
    assert "32 to 512" in shown.out
    assert luthier("models", "show", MODEL, "--json").json["limits"]["max_seq_length_sft"] == 512
    assert luthier("models", "add", "my/model", "--folder", "nowhere").out == "my/model\n"
    assert "my/model" in [model["name"] for model in luthier("models", "list", "--json").json["data"]]
    assert luthier("models", "remove", "my/model").code == 0
    refused = luthier("models", "remove", MODEL)
    assert refused.code == 4
    assert "built in" in refused.err
    assert luthier("models", "show", "luthier/tyni").code == 4


def test_files_when_uploaded_then_listed_shown_downloaded_and_deleted(luthier):
    name = write_rows(luthier)
    uploaded = luthier("files", "upload", name)
    file_id = uploaded.out.strip()
    assert luthier("files", "upload", name).out.strip() == file_id
    assert file_id in luthier("files", "list").out
    wait_for(luthier, "files", "get", file_id, until=lambda file: file["processing_status"] == "COMPLETED")
    shown = luthier("files", "get", file_id).out
    assert "COMPLETED" in shown
    assert "conversation format, 30 lines" in shown
    assert luthier("files", "download", file_id).code == 2  # it would overwrite the file that was uploaded
    downloaded = luthier("files", "download", file_id, "-o", "copy.jsonl")
    assert downloaded.out == "copy.jsonl\n"
    assert (luthier.cwd / "copy.jsonl").read_bytes() == (luthier.cwd / name).read_bytes()
    assert luthier("files", "download", file_id, "-o", "-").out == (luthier.cwd / name).read_text()
    assert luthier("files", "delete", file_id).code == 0
    assert luthier("files", "get", file_id).code == 4


def test_files_upload_when_file_is_not_valid_then_it_is_not_sent(luthier):
    (luthier.cwd / "bad.jsonl").write_text('{"prompt": "only"}\n')
    result = luthier("files", "upload", "bad.jsonl")
    assert result.code == 1
    assert result.out == ""  # where the file's id would stand
    assert "bad.jsonl:1  $.completion" in result.err
    assert "bad.jsonl" not in luthier("files", "list").out
    sent = luthier("files", "upload", "bad.jsonl", "--no-check", "--json").json
    wait_for(luthier, "files", "get", sent["id"], until=lambda file: file["processing_status"] == "INVALID_FORMAT")
    assert "bad.jsonl:1  $.completion" in luthier("files", "get", sent["id"]).out
    refused = luthier("ft", "create", sent["id"], "-m", MODEL)
    assert refused.code == 1
    assert ":1  $.completion" in refused.err


def test_create_when_local_file_then_parameters_and_price_are_shown_and_they_are_the_jobs(luthier):
    name = write_rows(luthier)
    options = ["-m", MODEL, "--n-epochs", "2", "--learning-rate", "2e-4", "--no-packing", "--max-seq-length", "256"]
    price = luthier(
        "ft", "estimate", name, "-m", MODEL, "--n-epochs", "2", "--no-packing", "--max-seq-length", "256", "--json"
    )
    result = luthier("ft", "create", name, *options)
    assert result.code == 0
    job_id = result.out.strip()
    job = wait_for(luthier, "ft", "get", job_id, until=lambda job: job["token_count"])
    assert job["token_count"] == price.json["estimated_train_token_count"]
    assert f"{job['token_count']:,} to train" in result.err
    assert f"luthier watch {job_id}" in result.err
    shown, fields = read_fields(result.err), read_fields(luthier("ft", "get", job_id).out)
    parameters = shown.keys() - {"tokens", "price"}
    assert "batch size" in parameters
    assert {name: shown[name] for name in parameters} == {name: fields[name] for name in parameters}
    (event,) = [e for e in luthier("ft", "events", job_id, "--json").json["data"] if e["type"] == "job_queued"]
    assert shown["price"] in event["message"]


def read_fields(text):
    """Return what is shown in two columns."""
    return dict(re.findall(r"^([a-z][a-z ]*?)  +(\S.*)$", text, re.MULTILINE))


@pytest.mark.parametrize(
    "options", [["--training-type", "full"], ["--lora-r", "4", "--lr-scheduler", "linear", "--train-on-inputs", "true"]]
)
def test_create_when_other_kinds_of_training_then_what_is_shown_is_what_the_job_has(luthier, options):
    result = luthier("ft", "create", write_rows(luthier), "-m", MODEL, *options)
    shown, job = read_fields(result.err), read_fields(luthier("ft", "get", result.out.strip()).out)
    for name in ("training type", "scheduler", "train on inputs", "max seq length", "gradient accumulation steps"):
        assert shown[name] == job[name]


def test_create_when_parameters_are_wrong_then_all_are_told_and_nothing_is_uploaded(luthier):
    """Those that bear on the price and those that do not, and before a long file is checked."""
    (luthier.cwd / "never.jsonl").write_text('{"prompt": "not valid either"}\n')
    options = ["-m", MODEL, "--learning-rate", "7", "--suffix", "a b", "--n-epochs", "99"]
    for result in (
        luthier("ft", "create", "never.jsonl", *options),
        luthier("ft", "create", "never.jsonl", *options, "--validation-file", "never.jsonl", "--yes"),
    ):
        assert result.code == 4
        assert result.out == ""
        assert result.err.count("error: ") == 3
        for param in ("learning_rate", "suffix", "n_epochs"):
            assert param in result.err
    assert luthier("ft", "estimate", "never.jsonl", "-m", MODEL, "--n-epochs", "99").code == 4
    assert "never.jsonl" not in luthier("files", "list").out


def test_create_when_a_validation_file_is_not_used_then_it_warns_before_the_upload(luthier):
    write_rows(luthier, "val.jsonl")
    result = luthier("ft", "create", write_rows(luthier), "-m", MODEL, "--validation-file", "val.jsonl")
    assert result.code == 0
    assert result.err.index("n_evals is 0") < result.err.index("uploaded")


WARNED = '{"text": "words", "note": 1}\n' * 8  # an unknown key in each row


def test_create_and_upload_when_file_is_valid_then_the_check_is_shown_with_a_few_warnings(luthier):
    (luthier.cwd / "warned.jsonl").write_text(WARNED)
    expected = "warned.jsonl: valid  general format, 8 lines, 232 B, 8 warnings"
    for result in (luthier("files", "upload", "warned.jsonl"), luthier("ft", "create", "warned.jsonl", "-m", MODEL)):
        assert result.code == 0
        assert expected in result.err
        assert result.err.count("warning: ") == 5
        assert "… and 3 more warnings" in result.err
        assert len(result.out.splitlines()) == 1  # the id alone
    file_id = luthier("files", "upload", "warned.jsonl").out.strip()
    assert f"{file_id}: valid  general format, 8 lines" in luthier("ft", "create", file_id, "-m", MODEL).err


def test_create_when_model_is_misspelt_then_nothing_is_uploaded(luthier):
    result = luthier("ft", "create", write_rows(luthier, "never.jsonl"), "-m", "luthier/tyni")
    assert result.code == 4
    assert MODEL in result.err
    assert "never.jsonl" not in luthier("files", "list").out


def test_create_when_file_is_missing_or_unknown_then_says_which(luthier):
    assert luthier("ft", "create", "missing.jsonl", "-m", MODEL).code == 2
    unknown = luthier("ft", "create", "file-unknown", "-m", MODEL)
    assert unknown.code == 4
    assert "file-unknown" in unknown.err


def test_create_when_one_file_is_unknown_then_the_other_is_not_uploaded(luthier):
    name = write_rows(luthier, "alone.jsonl")
    result = luthier("ft", "create", name, "-m", MODEL, "--validation-file", "file-unknown", "--n-evals", "1")
    assert result.code == 4
    assert "file-unknown" in result.err
    assert "alone.jsonl" not in luthier("files", "list").out


def test_create_when_on_a_terminal_then_it_asks_and_no_means_no(luthier):
    name = write_rows(luthier)
    before = len(luthier("ft", "list", "--json").json["data"])
    for no in ("n\n", "\x04"):  # ^D is not consent either
        _, code = talk(luthier, ["ft", "create", name, "-m", MODEL], [("Start this job? [Y/n]", no)])
        assert code == 1
    assert len(luthier("ft", "list", "--json").json["data"]) == before
    shown, code = talk(luthier, ["ft", "create", name, "-m", MODEL], [("Start this job? [Y/n]", "\n")])
    assert code == 0
    assert len(luthier("ft", "list", "--json").json["data"]) == before + 1
    assert re.search(r"ft-[0-9a-f-]{36}", shown)


def test_create_when_watched_as_json_then_the_job_and_its_life_are_lines(luthier):
    result = luthier("ft", "create", write_rows(luthier), "-m", MODEL, "--watch", "--json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert lines[0]["kind"] == "job"
    assert [line["data"]["step"] for line in lines if line["kind"] == "metric"] == [*range(1, 11), 10]
    assert [line["data"]["seq"] for line in lines if line["kind"] == "event"] == list(
        range(1, 1 + sum(line["kind"] == "event" for line in lines))
    )
    assert lines[-1]["kind"] == "state"
    assert lines[-1]["data"]["status"] == "completed"
    assert (result.code, result.err) == (0, "")


def test_watch_when_the_data_are_at_fault_then_the_log_with_its_hint_and_1(luthier):
    job = create_job(luthier, "--suffix", "fail")
    result = luthier("watch", job["id"])
    assert result.code == 1
    assert "job_pending" in result.out.splitlines()[0]
    assert "row 7 is bad" in result.out
    assert "mend row 7" in result.out
    events = luthier("list-events", job["id"]).out
    assert [line.split() for line in events.splitlines()] == [line.split() for line in result.out.splitlines()]


def test_watch_when_on_a_terminal_then_the_last_picture_stays(luthier, finished_job):
    shown, code = talk(luthier, ["watch", finished_job], [])
    assert code == 0
    last = shown[shown.rindex(finished_job + "  completed") :]
    assert "step 10 of 10   loss 2.000" in last
    assert "◆ evaluation loss" in last
    assert "job_complete" in last


def test_cancel_when_job_runs_then_it_is_cancelled_and_the_watcher_told(luthier):
    job = create_job(luthier, "--suffix", "wait")
    wait_for(luthier, "ft", "get", job["id"], until=lambda job: job["status"] == "running")
    assert luthier("ft", "cancel", job["id"]).out == f"{job['id']} cancel_requested\n"
    result = luthier("watch", job["id"])
    assert result.code == 1
    assert "job_stopped" in result.out
    assert luthier("ft", "cancel", job["id"]).code == 4


def test_download_when_no_choice_then_the_main_output_in_a_folder_of_its_own(luthier, finished_job):
    result = luthier("ft", "download", finished_job)
    assert result.code == 0
    folder = luthier.cwd / result.out.strip()
    assert folder.name == f"tiny-{finished_job.removeprefix('ft-')[:8]}-merged"
    assert {path.name for path in folder.iterdir()} == MERGED_FILES
    assert "AutoModelForCausalLM.from_pretrained" in result.err
    assert [path for path in luthier.cwd.iterdir() if path.is_dir() or ".zst" in path.name] == [folder]
    again = luthier("ft", "download", finished_job)
    assert again.code == 2
    assert folder.name in again.err


def test_download_when_a_step_is_named_then_its_adapter(luthier, finished_job):
    result = luthier("ft", "download", finished_job, "--step", "5", "-o", "mine/adapter", "--json")
    assert result.json["checkpoint"] == "adapter"
    assert result.json["path"] == str(luthier.cwd / "mine/adapter")
    assert (luthier.cwd / "mine/adapter/adapter_config.json").exists()
    assert [path.name for path in (luthier.cwd / "mine").iterdir()] == ["adapter"]


def test_download_when_not_to_be_unpacked_then_the_archive_as_announced(luthier, finished_job):
    result = luthier(
        "ft", "download", finished_job, "--checkpoint", "merged", "--no-extract", "-o", "m.tar.zst", "--json"
    )
    data = (luthier.cwd / "m.tar.zst").read_bytes()
    assert result.json["archive_sha256"] == hashlib.sha256(data).hexdigest()
    assert result.json["archive_bytes"] == len(data)


def test_download_when_there_is_no_such_archive_then_4_and_what_there_is(luthier, finished_job):
    result = luthier("ft", "download", finished_job, "--checkpoint", "merged", "--step", "5")
    assert result.code == 4
    assert "only its adapter" in result.err
    missing = luthier("ft", "download", finished_job, "--step", "7")
    assert missing.code == 4
    assert "adapter of step 5" in missing.err


def test_estimate_when_nothing_can_be_trained_then_says_so_and_4(luthier):
    result = luthier("ft", "estimate", write_rows(luthier, rows=3), "-m", MODEL, "--max-seq-length", "32")
    assert result.code == 4
    assert "nothing in the training file" in result.err


def test_checkpoints_when_listed_then_each_line_says_how_to_get_it(luthier, finished_job):
    lines = luthier("ft", "checkpoints", finished_job).out.splitlines()[1:]
    commands = [line.partition("luthier ")[2].split() for line in lines]
    assert len(commands) == 2
    for number, command in enumerate(commands):
        assert luthier(*command, "-o", f"folder-{number}").code == 0


def test_metrics_when_listed_then_the_newest_rows_and_with_json_all(luthier, finished_job):
    lines = luthier("ft", "metrics", finished_job, "--limit", "2").out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["10", "1.00", "2.0000", "-", "-", "-"],
        ["10", "1.00", "-", "2.1250", "-", "-"],
    ]
    assert len(luthier("ft", "metrics", finished_job, "--json").json["metrics"]) == 11


def talk(cli, arguments, exchanges):
    """Run a command on a pseudo-terminal, answer its questions, and return all that was shown and its exit code."""
    parent, child = pty.openpty()
    environment = {**os.environ, "LUTHIER_HOME": str(cli.home), "TERM": "xterm", "COLUMNS": "100", **cli.environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier.cli", *arguments], stdin=child, stdout=child, stderr=child, cwd=cli.cwd,
        env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(child)
    output, shown, questions = b"", "", list(exchanges)
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while block := os.read(parent, 65536):
            output += block
            shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", output.decode(errors="ignore"))
            if questions and questions[0][0] in shown:
                os.write(parent, questions.pop(0)[1].encode())
    os.close(parent)
    assert not questions, shown
    return shown, process.wait(DEADLINE_S)
