"""The worker as the supervisor starts it: a process with a title, signals and a lease."""

import hashlib
import shutil
import signal
import time
from pathlib import Path

from luthier.protocol import journal, layout
from training_runs import make_rows

ROWS = make_rows(12)
TIMEOUT_S = 120


def test_worker_when_started_twice_writes_the_same_archives_and_exits_0(make_run):
    run = make_run(ROWS, threads=2, n_checkpoints=2, packing=False)
    digests = []
    for _ in range(2):
        process = run.start()
        run.wait_for(journal.Finished, process)
        assert process.wait(TIMEOUT_S) == 0
        assert (run.path / layout.LOG).read_text() == ""
        archives = sorted([*run.path.glob("output/*"), *run.path.glob("checkpoints/*")])
        digests.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in archives])
        (run.path / layout.JOURNAL).unlink()
        shutil.rmtree(run.path / layout.OUTPUT_DIR)
        shutil.rmtree(run.path / layout.CHECKPOINTS_DIR)
    assert digests[0] == digests[1]
    assert [name for name, _ in digests[0]] == ["step-000003.tar.zst", "adapter.tar.zst", "merged.tar.zst"]


def test_worker_when_told_to_stop_ends_at_its_last_step_and_leaves_no_output(make_run):
    run = make_run(ROWS, n_epochs=20_000, batch_size=1)
    process = run.start()
    run.wait_for(journal.Metric, process)
    title = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    assert title == f"luthier worker {run.spec.job_id}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == 0
    last = run.read()[-1]
    assert isinstance(last, journal.Finished)
    assert last.stopped
    steps = [message.step for message in run.read() if isinstance(message, journal.Metric)]
    assert last.step == steps[-1]
    assert not (run.path / layout.OUTPUT_DIR).exists()


def test_worker_when_its_lease_is_not_renewed_ends_itself(make_run):
    run = make_run(ROWS, n_epochs=20_000, batch_size=1, lease_s=1.0)
    process = run.start()
    assert process.wait(TIMEOUT_S) == 1
    (last,) = run.read()[-1:]
    assert isinstance(last, journal.Failed)
    assert last.kind == "lease_lost"


def test_worker_when_suspended_past_its_lease_goes_on_if_it_was_renewed_meanwhile(make_run):
    run = make_run(ROWS, n_epochs=20_000, batch_size=1, lease_s=4.0)
    with run.renewing():
        process = run.start()
        run.wait_for(journal.Metric, process)
        process.send_signal(signal.SIGSTOP)
        seen = len(run.read())
        suspended_at = time.monotonic()
        run.wait_until(lambda: time.monotonic() > suspended_at + 1.2 * run.spec.lease_s, process)
        process.send_signal(signal.SIGCONT)
        run.wait_until(lambda: len(run.read()) > seen + 1, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
    assert isinstance(run.read()[-1], journal.Finished)


def test_worker_when_its_spec_is_of_another_version_says_so_and_exits_1(make_run):
    run = make_run(ROWS)
    path = run.path / layout.SPEC
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    process = run.start()
    assert process.wait(TIMEOUT_S) == 1
    (last,) = run.read()
    assert isinstance(last, journal.Failed)
    assert "99" in last.message
