"""Run directories for tests of the trainer: token files from plain lists, jobs in this process or as workers."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from luthier.datasets.tokens import Counts, TokenWriter, open_tokens
from luthier.protocol import journal, layout, spec

WAIT_S = 120  # for another process, on a machine that others use too

HYPERPARAMETERS = spec.Hyperparameters(
    n_epochs=1,
    n_checkpoints=1,
    n_evals=0,
    batch_size=2,
    gradient_accumulation_steps=1,
    learning_rate=1e-3,
    schedule=spec.Schedule(),
    max_grad_norm=1.0,
    weight_decay=0.0,
    random_seed=42,
    packing=True,
    max_seq_length=64,
    training_type=spec.Lora(r=4, alpha=8.0),
    train_on_inputs="auto",
)


def make_rows(count, *, seed=0, longest=40, vocabulary=256):
    """Return rows of random tokens: a prompt without loss, then an answer with it."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt, answer = rng.randint(1, longest // 2), rng.randint(1, longest // 2)
        ids = [rng.randrange(3, vocabulary) for _ in range(prompt + answer)]
        rows.append((ids, bytes(prompt) + b"\x01" * answer))
    return rows


def write_tokens(path, rows):
    """Write rows of (ids, trained) as a token file and open it."""
    lengths = [len(ids) for ids, _ in rows]
    counts = Counts(
        rows=len(rows),
        used_rows=len(rows),
        dropped_rows=0,
        dropped_lines=[],
        truncated_rows=0,
        truncated_lines=[],
        tokens=sum(lengths),
        trained_tokens=sum(sum(trained) for _, trained in rows),
        longest_row_tokens=max(lengths, default=0),
        packs=len(rows),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with TokenWriter(path) as writer:
        for ids, trained in rows:
            writer.add(ids, trained)
        writer.finish(counts)
    return open_tokens(path)


class Run:
    """A run directory with a job in it."""

    def __init__(self, path: Path, training_spec: spec.TrainingSpec) -> None:
        self.path = path
        self.spec = training_spec

    def train(self, stop=None):
        """Run the job in this process; return the messages. Raises what run_job raises. ``stop`` is never set by itself."""
        from luthier.training.failures import Progress
        from luthier.training.run import run_job

        with journal.JournalWriter(self.path / layout.JOURNAL) as writer:
            writer.write(run_job(self.path, self.spec, writer, stop or threading.Event(), Progress()))
        return self.read()

    def start(self):
        """Start the worker as the supervisor does; its journal tells the rest."""
        with (self.path / layout.LOG).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "luthier.training", str(self.path)], stdout=log, stderr=log, env=os.environ
            )

    def read(self):
        """Return the messages that are in the journal."""
        return [message for _, message in journal.read(self.path / layout.JOURNAL)[0]]

    @contextlib.contextmanager
    def renewing(self):
        """Touch the lease while the body runs, ten times as often as it must be."""
        stop = threading.Event()

        def renew():
            while not stop.wait(self.spec.lease_s / 10):
                (self.path / layout.LEASE).touch()

        thread = threading.Thread(target=renew)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def wait_for(self, kind, process):
        """Return the first message of a kind; fail when the worker ends without one."""

        def find():
            return next((message for message in self.read() if isinstance(message, kind)), None)

        self.wait_until(find, process)
        return find()

    def wait_until(self, condition, process):
        """Wait until the condition holds; fail when the worker ends before, or after WAIT_S."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            has_ended = process.poll() is not None
            if condition():
                return
            assert not has_ended, (self.path / layout.LOG).read_text() + repr(self.read())
            time.sleep(0.02)
        pytest.fail(f"waited {WAIT_S} s: {self.read()}")
