"""A worker without torch: reads the spec, speaks the journal, watches its lease. Told how to behave by HOME/plan.json.

Leaves traces beside the run directories: ``starts`` (a line for each start) and ``doubles`` (a line
whenever another worker of the same job was alive).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from luthier.protocol import journal, layout, lease, spec


class Plan(msgspec.Struct):
    steps: int = 6
    step_s: float = 0.03
    checkpoint_at: tuple[int, ...] = (3,)
    wrong_sha256: bool = False
    escape: bool = False  # announce a file outside the run directory
    die_at: int | None = None  # exit code 7, in the middle
    hang_at: int | None = None
    garbage_at: int | None = None  # a journal line that is not a message
    fail: str | None = None  # kind of the failure to report in the middle
    ignore_sigterm: bool = False
    linger_s: float = 0.0  # after the last message
    silent_death: bool = False  # before the first message


def main(directory: Path) -> int:
    traces = directory.parent
    home = directory.parent.parent
    plan = msgspec.json.decode((home / "plan.json").read_bytes(), type=Plan)
    training = spec.read_spec(directory / layout.SPEC)
    append(traces / "starts", f"{training.job_id} {os.getpid()}")
    lock = os.open(traces / f"{training.job_id}.alive", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        append(traces / "doubles", training.job_id)
    if plan.silent_death:
        sys.stderr.write("ImportError: no module named torch\n")
        return 1
    with journal.JournalWriter(directory / layout.JOURNAL) as writer:
        return Run(directory, plan, training, writer).run()


class Run:
    def __init__(self, directory: Path, plan: Plan, training: spec.TrainingSpec, writer: journal.JournalWriter) -> None:
        self.directory = directory
        self.plan = plan
        self.training = training
        self.write = writer.write
        self.stopping = False
        self.lease_seen = (0.0, time.monotonic())
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: object) -> None:
        self.stopping = not self.plan.ignore_sigterm

    def run(self) -> int:
        plan = self.plan
        tokens = (self.directory / layout.TRAIN_TOKENS).stat().st_size
        self.write(journal.Started(pid=os.getpid(), device="cpu", precision="fp32", threads=1, versions={}))
        self.write(journal.ModelLoaded(param_count=1000, trainable_param_count=100))
        self.write(
            journal.TrainingStarted(total_steps=plan.steps, steps_per_epoch=plan.steps, train_tokens=tokens),
            durable=True,
        )
        for step in range(1, plan.steps + 1):
            time.sleep(plan.step_s)
            if (code := self.misbehave(step)) is not None:
                return code
            self.write(
                journal.Metric(
                    kind="train", step=step, epoch=step / plan.steps, loss=2.0 / step, grad_norm=1.0,
                    learning_rate=1e-4, tokens=10, step_s=plan.step_s, seconds_remaining=(plan.steps - step) * 1.0,
                )
            )  # fmt: skip
            if self.lease_is_lost():
                self.write(journal.Failed(kind="lease_lost", message="the lease was not renewed"), durable=True)
                return 1
            if self.stopping:
                self.write(journal.Finished(step=step, epochs_completed=0, stopped=True), durable=True)
                return 0
            if step in plan.checkpoint_at:
                entry = self.make_archive(f"{layout.CHECKPOINTS_DIR}/step-{step}.tar.zst", f"checkpoint {step}")
                self.write(journal.CheckpointSaved(step=step, kind="adapter", archive=entry), durable=True)
        self.write(journal.EpochComplete(epoch=1, step=plan.steps))
        self.write(journal.Exporting(step=plan.steps), durable=True)
        for kind in ("adapter", "merged"):
            entry = self.make_archive(f"{layout.OUTPUT_DIR}/{kind}.tar.zst", f"output {kind}")
            self.write(
                journal.Exported(kind=kind, step=plan.steps, archive=entry, weights_sha256="0" * 64), durable=True
            )
        self.write(journal.Finished(step=plan.steps, epochs_completed=1), durable=True)
        time.sleep(plan.linger_s)
        return 0

    def misbehave(self, step: int) -> int | None:
        plan = self.plan
        if step == plan.die_at:
            return 7
        if step == plan.garbage_at:
            append(self.directory / layout.JOURNAL, '{"type":"nonsense"}')
        if step == plan.hang_at:
            while not self.stopping:
                time.sleep(0.05)
        if plan.fail and step > plan.steps // 2:
            self.write(journal.Failed(kind=plan.fail, message=f"{plan.fail} it is", hint="mend it"), durable=True)
            return 1
        return None

    def lease_is_lost(self) -> bool:
        path = self.directory / layout.LEASE
        mtime = path.stat().st_mtime
        if mtime != self.lease_seen[0]:
            self.lease_seen = (mtime, time.monotonic())
        return time.monotonic() - self.lease_seen[1] > lease.read_term_s(path, self.training.lease_s)

    def make_archive(self, name: str, content: str) -> journal.FileEntry:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        data = f"{self.training.job_id} {content}".encode()
        path.write_bytes(data)
        sha256 = hashlib.sha256(b"other" if self.plan.wrong_sha256 else data).hexdigest()
        if self.plan.escape:
            name = "../../secret"
            data = (self.directory / name).read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
        return journal.FileEntry(path=name, size_bytes=len(data), sha256=sha256)


def append(path: Path, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
