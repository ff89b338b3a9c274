"""kill -9 of anything at any moment: nothing that was acknowledged is missing, and the job ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import server as servers

pytestmark = pytest.mark.training

ROWS = [
    {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n} " * 8}]}
    for n in range(64)
]
DEADLINE_S = 180


def call(server, method, path, **arguments):
    response = httpx.request(
        method, server.base_url + path, headers={"Authorization": f"Bearer {server.api_key}"}, timeout=60, **arguments
    )
    assert response.status_code < 400, response.text
    return response.json()


def upload(server, tmp_path) -> str:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with path.open("rb") as file:
        form = {"file_name": path.name, "purpose": "fine-tune", "file_type": "jsonl"}
        return call(server, "POST", "/v1/files/upload", files={"file": (path.name, file)}, data=form)["id"]


def start_job(server, file_id, **overrides) -> str:
    body = {"model": "luthier/tiny", "training_file": file_id, "n_epochs": 4, "batch_size": 1, "n_checkpoints": 2}
    return call(server, "POST", "/v1/fine-tunes", json=body | overrides)["id"]


def wait_until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {DEADLINE_S} s")


def find_pids(text: str) -> list[int]:
    """Return the processes whose title or command line contains ``text``."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                pids.append(int(entry.name))
    return pids


def assert_job_is_whole(server, job_id):
    job = wait_until(
        lambda: (
            (seen := call(server, "GET", f"/v1/fine-tunes/{job_id}"))["status"]
            in {"completed", "error", "user_error", "cancelled"}
            and seen
        ),
        "the job's end",
    )
    assert job["status"] == "completed", job["events"][-3:]
    events = job["events"]
    types = [event["type"] for event in events]
    assert types[0] == "job_pending"
    assert types[-1] == "job_complete"
    for once in ("job_start", "training_start", "training_complete", "job_complete"):
        assert types.count(once) == 1, types
    steps = [point["train/global_step"] for point in metrics(server, job_id)]
    assert steps == list(range(1, len(steps) + 1)), "a step's metric is missing or doubled"
    checkpoints = call(server, "GET", f"/v1/fine-tunes/{job_id}/checkpoints")["data"]
    assert checkpoints
    return job


def metrics(server, job_id):
    points = call(server, "GET", f"/v1/fine-tunes/{job_id}/metrics")["metrics"]
    return [point for point in points if "train/loss" in point]


def test_whole_service_when_killed_while_training_goes_on_at_the_next_start(tmp_path):
    home = tmp_path / "home"
    first = servers.start_server(home)
    job_id = start_job(first, upload(first, tmp_path))
    wait_until(lambda: metrics(first, job_id), "the first step")
    worker = find_pids(f"luthier worker {job_id}")
    assert len(worker) == 1
    supervisors = find_pids(f"supervise --home {home}")
    assert len(supervisors) == 1
    for pid in (first.process.pid, *supervisors):
        os.kill(pid, signal.SIGKILL)
    first.process.wait()
    with servers.running(home) as second:
        job = assert_job_is_whole(second, job_id)
        assert call(second, "GET", f"/v1/files/{job['training_file']}")["bytes"] > 0
        assert find_pids(f"luthier worker {job_id}") == []


def test_supervisor_when_killed_is_started_again_and_takes_the_worker_over(tmp_path):
    home = tmp_path / "home"
    with servers.running(home) as server:
        job_id = start_job(server, upload(server, tmp_path))
        wait_until(lambda: metrics(server, job_id), "the first step")
        worker = find_pids(f"luthier worker {job_id}")
        (supervisor,) = find_pids(f"supervise --home {home}")
        os.kill(supervisor, signal.SIGKILL)
        # The killed one may be seen for a moment longer: the signal is sent, its process not taken down yet.
        wait_until(lambda: set(find_pids(f"supervise --home {home}")) - {supervisor}, "another supervisor")
        assert find_pids(f"luthier worker {job_id}") in (worker, [])
        assert_job_is_whole(server, job_id)


def test_worker_when_killed_ends_its_job_with_the_cause_and_no_charge(tmp_path):
    with servers.running(tmp_path / "home") as server:
        job_id = start_job(server, upload(server, tmp_path), n_epochs=20)
        (worker,) = wait_until(lambda: find_pids(f"luthier worker {job_id}"), "a worker")
        wait_until(lambda: metrics(server, job_id), "the first step")
        os.kill(worker, signal.SIGKILL)
        job = wait_until(
            lambda: (seen := call(server, "GET", f"/v1/fine-tunes/{job_id}"))["status"] == "error" and seen, "an error"
        )
        last = job["events"][-1]
        assert last["type"] == "job_error"
        assert last["level"] == "error"
        assert "signal 9" in last["message"]
        assert job["total_price"] == 0


def test_serve_when_home_is_in_use_or_port_is_taken_says_so(tmp_path):
    with servers.running(tmp_path / "home") as server:
        port = server.base_url.rpartition(":")[2]
        command = [sys.executable, "-m", "luthier.cli", "serve"]
        same_home = subprocess.run(
            [*command, "--home", server.home, "--port", "0"], capture_output=True, text=True, timeout=60
        )
        assert same_home.returncode != 0
        assert f"in use by another luthier serve: process {server.process.pid}" in same_home.stderr
        assert "--home" in same_home.stderr
        same_port = subprocess.run(
            [*command, "--home", tmp_path / "other", "--port", port], capture_output=True, text=True, timeout=60
        )
        assert same_port.returncode != 0
        assert f"port {port} on 127.0.0.1 is taken" in same_port.stderr
        assert "--port 0" in same_port.stderr
        assert "Traceback" not in same_home.stderr + same_port.stderr


def test_serve_imports_no_tensor_library():
    """The API starts fast and stays small: what reads weights or tokens runs in other processes."""
    code = (
        "import sys, luthier.app, luthier.cli.serve, luthier.supervisor.loop\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'tokenizers', 'jinja2', 'gguf') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
