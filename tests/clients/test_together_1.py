"""The first generation of the official client (1.5.35), whose types refuse what they do not know."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.training, pytest.mark.clients]


def test_old_client_reads_a_finished_job_with_its_events(old_together, finished_job):
    answer = old_together.script(
        """
        job = client.fine_tuning.retrieve(sys.argv[1])
        answer = {
            "status": job.status.value,
            "price": job.total_price,
            "lines": job.training_file_num_lines,
            "rank": job.training_type.lora_r,
            "events": [event.type.value for event in client.fine_tuning.list_events(sys.argv[1]).data],
            "same": len(job.events),
            "listed": [one.id for one in client.fine_tuning.list().data],
            "checkpoints": [[one.type, one.name] for one in client.fine_tuning.list_checkpoints(sys.argv[1])],
        }
        """,
        finished_job.id,
    )
    assert (answer["status"], answer["lines"], answer["rank"]) == ("completed", 24, 4)
    assert answer["price"] == round(finished_job.estimate["estimated_total_price"] * 1e9)
    assert finished_job.id in answer["listed"]
    assert answer["same"] == len(answer["events"])
    milestones = iter(answer["events"])
    assert all(
        one in milestones for one in ("JOB_PENDING", "JOB_START", "TRAINING_START", "COMPRESSING_MODEL", "JOB_COMPLETE")
    )
    assert "Final Merged" in [kind for kind, _ in answer["checkpoints"]]


def test_old_client_downloads(old_together, finished_job):
    script = 'answer = client.fine_tuning.download(sys.argv[1], output="old.tar.zst", checkpoint_type="adapter").size'
    assert old_together.script(script, finished_job.id) == (old_together.folder / "old.tar.zst").stat().st_size


def test_old_client_uploads_creates_and_cancels(old_together):
    rows = [{"prompt": f"{n} plus 2", "completion": f"{n + 2}"} for n in range(30)]
    path = old_together.folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = old_together.script(
        """
        file = client.files.upload(file=sys.argv[1])
        limits = client.fine_tuning.get_model_limits(model="luthier/tiny")
        job = client.fine_tuning.create(
            training_file=file.id, model="luthier/tiny", n_epochs=20, batch_size=1, lora_r=8, suffix="old"
        )
        cancelled = client.fine_tuning.cancel(job.id)
        answer = {"epochs": limits.max_num_epochs, "file": job.training_file == file.id, "status": cancelled.status.value}
        """,
        str(path),
    )
    assert answer["epochs"] == 20
    assert answer["file"]
    assert answer["status"] in {"cancelled", "cancel_requested"}


def test_old_client_with_a_wrong_key_says_so(old_together):
    script = """
        import together
        try:
            client.fine_tuning.list()
        except together.error.TogetherException as error:
            answer = str(error)
    """
    assert "does not know the API key" in old_together.with_key("lk-wrong").script(script)
