"""The official Python client 3.1.1, SDK and ``tg``, unmodified."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = [pytest.mark.training, pytest.mark.clients]


def list_archive(path: Path) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(path.read_bytes()))) as archive:
        return {member.name.rpartition("/")[2] for member in archive.getmembers()}


def test_whoami_tells_key_project_and_organization(together):
    shown = together.tg("whoami").stdout
    me = together.tg_json("whoami")
    assert me["type"] == "project_api_key"
    for value in (me["api_key"]["id"], me["project"]["id"], me["organization"]["id"]):
        assert value in shown
    assert me["project"]["slug"] == "default"
    assert [project["id"] for project in together.tg_json("projects", "list")["data"]] == [me["project"]["id"]]


def test_uploaded_files_are_listed_checked_and_given_back(together, inputs):
    listed = {file["id"]: file for file in together.tg_json("files", "list")}
    assert {inputs.training_file, inputs.validation_file} <= set(listed)
    file = together.script("answer = client.files.retrieve(sys.argv[1]).to_dict()", inputs.training_file)
    assert (file["filename"], file["bytes"]) == ("train.jsonl", inputs.training_path.stat().st_size)
    script = "answer = client.files.content(sys.argv[1]).read().decode()"
    assert together.script(script, inputs.training_file) == inputs.training_path.read_text()


def test_upload_of_the_same_file_again_is_the_same_file(together, inputs):
    again = together.script("answer = client.files.upload(file=sys.argv[1]).id", str(inputs.training_path))
    assert again == inputs.training_file


def test_limits_are_printed(together):
    limits = together.tg_json("ft", "model-limits", "luthier/tiny")
    assert limits["model_name"] == "luthier/tiny"
    assert limits["lora_training"]["default_rank"] >= 1
    assert limits["full_training"]["max_batch_size"] >= 1


def test_finished_job_costs_what_was_estimated(together, finished_job):
    job = together.tg_json("ft", "retrieve", finished_job.id)
    assert job["status"] == "completed"
    assert finished_job.estimate["estimation_available"] is True
    assert job["total_price"] == round(finished_job.estimate["estimated_total_price"] * 1e9)
    counted = finished_job.estimate["estimated_train_token_count"] + finished_job.estimate["estimated_eval_token_count"]
    assert job["token_count"] == counted
    assert job["training_type"]["lora_r"] == 4
    assert job["epochs_completed"] == 2
    assert job["trainingfile_numlines"] == 24


def test_events_of_a_finished_job_are_in_order(together, finished_job):
    events = together.tg_json("ft", "list-events", finished_job.id)
    types = [event["type"] for event in events]
    milestones = [
        "job_pending", "job_queued", "job_start", "model_downloading", "model_download_complete",
        "training_data_downloading", "training_data_download_complete", "validation_data_downloading",
        "validation_data_download_complete", "training_start", "epoch_complete", "checkpoint_save", "epoch_complete",
        "training_complete", "model_compressing", "model_compression_complete", "model_uploading",
        "model_upload_complete", "job_complete",
    ]  # fmt: skip
    rest = iter(types)
    assert all(one in rest for one in milestones), types
    assert types.count("eval_complete") == 1
    assert not [event for event in events if event["level"] == "error"]
    times = [event["created_at"] for event in events]
    assert times == sorted(times)
    assert "job_complete" in together.tg("ft", "list-events", finished_job.id).stdout


def test_retrieve_prints_the_job_and_its_curves(together, finished_job):
    shown = together.tg("ft", "retrieve", finished_job.id).stdout
    assert "completed" in shown
    assert "train/loss" in shown
    assert "Total events" in shown


def test_list_shows_the_job_with_its_price(together, finished_job):
    assert finished_job.id in together.tg("ft", "list").stdout
    jobs = together.script("answer = [job.to_dict() for job in client.fine_tuning.list().data]")
    assert finished_job.id in [job["id"] for job in jobs]


def test_metrics_are_one_for_each_step_and_can_be_thinned(together, finished_job):
    metrics = together.tg_json("ft", "list-metrics", finished_job.id)
    steps = [metric["train/global_step"] for metric in metrics if "train/loss" in metric]
    assert len(steps) >= 2
    assert steps == list(range(1, len(steps) + 1))
    assert len([metric for metric in metrics if "eval/loss" in metric]) == 1
    assert metrics[-1]["train/epoch"] == 2
    thinned = together.tg_json("ft", "list-metrics", finished_job.id, "--resolution", "1", "--global-step-from", "2")
    assert [metric["train/global_step"] for metric in thinned if "train/loss" in metric] == [steps[-1]]
    assert "train/loss" in together.tg("ft", "list-metrics", finished_job.id).stdout


def test_each_checkpoint_that_is_listed_downloads(together, finished_job):
    checkpoints = together.tg_json("ft", "list-checkpoints", finished_job.id)
    assert {one["checkpoint_type"] for one in checkpoints} == {"Intermediate", "Final Adapter", "Final Merged"}
    for index, one in enumerate(checkpoints):
        target = together.folder / f"checkpoint-{index}.tar.zst"
        name = f"{finished_job.id}:{one['step']}" if one["checkpoint_type"] == "Intermediate" else finished_job.id
        kind = [] if name != finished_job.id else ["-c", "adapter" if one["checkpoint"] == "adapter" else "merged"]
        together.tg("ft", "download", name, *kind, "-o", str(target))
        assert target.stat().st_size == one["size_bytes"]
        weights = "adapter_model.safetensors" if one["checkpoint"] == "adapter" else "model.safetensors"
        assert weights in list_archive(target)


def test_download_without_options_is_the_merged_model_under_its_name(together, finished_job):
    together.tg("ft", "download", finished_job.id)
    name = together.tg_json("ft", "retrieve", finished_job.id)["model_output_name"]
    archive = list_archive(together.folder / f"{name}.tar.zst")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= archive


def test_sdk_streams_the_adapter(together, finished_job):
    size = together.script(
        """
        with client.fine_tuning.with_streaming_response.content(ft_id=sys.argv[1], checkpoint="adapter") as response:
            response.stream_to_file("adapter.tar.zst")
            answer = int(response.headers["content-length"])
        """,
        finished_job.id,
    )
    path = together.folder / "adapter.tar.zst"
    assert path.stat().st_size == size
    assert "adapter_model.safetensors" in list_archive(path)


def test_create_by_the_command_line_uploads_a_path_and_cancel_ends_the_job(together, long_data):
    created = together.tg(
        "ft", "create", "-t", str(long_data), "-M", "luthier/tiny", "--suffix", "cli", "-y", "--ne", "20",
        "-b", "1", "--non-interactive",
    )  # fmt: skip
    assert "has been submitted" in created.stdout
    newest = together.tg_json("ft", "list")[0]
    assert newest["id"] in created.stdout
    assert newest["suffix"] == "cli"
    names = {file["id"]: file["filename"] for file in together.tg_json("files", "list")}
    assert names[newest["training_file"]] == long_data.name
    together.tg("ft", "cancel", newest["id"], "--quiet")
    script = """
        import time
        deadline = time.monotonic() + 100
        while (job := client.fine_tuning.retrieve(sys.argv[1])).status not in ("cancelled", "completed"):
            assert time.monotonic() < deadline, job.status
            time.sleep(0.2)
        answer = job.status
    """
    assert together.script(script, newest["id"]) == "cancelled"
    again = together.run("tg", "ft", "cancel", newest["id"], "--quiet")
    assert again.returncode != 0
    assert "cancelled" in again.stdout
    together.tg("ft", "delete", newest["id"], "--force")
    gone = together.run("tg", "ft", "retrieve", newest["id"])
    assert "there is no job" in gone.stdout + gone.stderr


def test_errors_say_what_is_wrong(together, inputs):
    for arguments, said in (
        (["ft", "create", "-t", inputs.training_file, "-M", "luthier/tinny", "-y"], "unknown base model: luthier/tinny; hint: did you mean luthier/tiny?"),
        (["ft", "create", "-t", inputs.training_file, "-M", "luthier/tiny", "--ne", "99", "-y"], "n_epochs must be from 1 to 20: 99"),
        (["ft", "create", "-t", "file-404", "-M", "luthier/tiny", "-y"], "file-404"),
        (["ft", "retrieve", "ft-404"], "ft-404"),
    ):  # fmt: skip
        done = together.run("tg", *arguments, "--non-interactive")
        assert done.returncode != 0
        assert said in " ".join((done.stdout + done.stderr).split()), done.stdout


def test_wrong_key_says_so_everywhere(together, inputs):
    stranger = together.with_key("lk-wrong")
    done = stranger.run("tg", "ft", "list")
    assert "this server does not know the API key" in done.stdout + done.stderr
    for call in ("client.fine_tuning.list()", f"client.files.upload(file={str(inputs.training_path)!r})"):
        script = f"""
            import together
            try:
                {call}
            except together.APIStatusError as error:
                answer = [error.response.status_code, error.response.json()["error"]["code"], str(error)]
        """
        status, code, message = stranger.script(script)
        assert (status, code) == (403, "invalid_api_key")
        assert "does not know the API key" in message


def test_job_of_another_project_is_not_found(together, finished_job, other_project_key):
    other = together.with_key(other_project_key)
    assert other.tg_json("ft", "list") == []
    script = """
        import together
        try:
            client.fine_tuning.retrieve(sys.argv[1])
        except together.NotFoundError as error:
            answer = error.status_code
    """
    assert other.script(script, finished_job.id) == 404
    done = other.run("tg", "ft", "cancel", finished_job.id, "--quiet", "--non-interactive", "--json")
    assert done.returncode != 0
    assert finished_job.id in json.dumps(together.tg_json("ft", "list"))
