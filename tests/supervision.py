"""A home with a queued job, supervisors as real processes, and a worker that needs no torch (faults/fake_worker.py)."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

import factories
from luthier import faults
from luthier import home as home_dir
from luthier.artifacts import service as artifacts
from luthier.billing import audit, ledger
from luthier.clock import SystemClock
from luthier.db import Database, schema
from luthier.errors import Unavailable
from luthier.jobs import log, service
from luthier.jobs.schemas import EventView, JobView
from luthier.jobs.tables import Job
from luthier.settings import Settings
from luthier.storage import DiskStore, ObjectStore
from luthier.supervisor import loop, processes

FAKE_WORKER = Path(__file__).parent / "faults" / "fake_worker.py"
DEADLINE_S = 60.0
TOKENS = b"tokens " * 100

EVENTS = [
    "job_pending",
    "job_queued",
    "job_start",
    "model_downloading",
    "model_download_complete",
    "training_data_downloading",
    "training_data_download_complete",
    "training_start",
    "checkpoint_save",
    "epoch_complete",
    "training_complete",
    "model_compressing",
    "model_compression_complete",
    "model_uploading",
    "model_upload_complete",
    "job_complete",
]

# Forked from a server that has imported everything already: a supervisor process in milliseconds.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["luthier.supervisor.loop", "factories"])


def wait_until(condition: Callable[[], Any], *, what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the condition's first true value; fail when there is none in time."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.03)
    raise AssertionError(f"not within {deadline_s} s: {what}")


class FailingStore:
    """A store whose disk is full for the first puts of a file."""

    def __init__(self, store: ObjectStore, *, failures: int) -> None:
        self._store = store
        self._left = failures

    def put_file(self, key: str, source: Path, *, move: bool = False) -> None:
        if self._left:
            self._left -= 1
            raise Unavailable("disk_full", "the server's disk is full: nothing of this was kept")
        self._store.put_file(key, source, move=move)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Workshop:
    """One home and everything that a test wants to see of it."""

    def __init__(self, path: Path, *, database_url: str | None = None, **settings: Any) -> None:
        self.settings = Settings(
            home=path,
            database_url=database_url,
            worker_python=_write_python(path),
            **({"tick_s": 0.01, "slots": 1, "disk_reserve_bytes": 0} | settings),
        )
        home_dir.prepare(self.settings)
        self.path = path
        self._supervisors: list[multiprocessing.process.BaseProcess] = []
        self.clock = SystemClock()
        self.store = DiskStore(self.settings.objects_dir)
        if database_url is None:
            shutil.copyfile(_make_empty_database(), self.settings.database_path)
        self.database = Database(self.settings.resolved_database_url)
        with self.database.transaction() as tx:
            self.principal = factories.make_principal(tx, now=self.clock.now())
        self.plan()

    def plan(self, **fields: Any) -> None:
        """Tell the next worker how to behave; see ``fake_worker.Plan``."""
        (self.path / "plan.json").write_bytes(msgspec.json.encode(fields))

    def make_job(self, **fields: Any) -> str:
        """Queue a job whose data and base model are really there."""
        with self.database.transaction() as tx:
            inputs = factories.make_inputs(tx, self.principal, now=self.clock.now())
            job = factories.make_job(tx, self.principal, now=self.clock.now(), inputs=inputs, **fields)
            model = tx.get(factories.BaseModelRow, inputs.model)
            model.path = str(self.settings.models_dir)
            keys = [row.object_key for row in tx.query(factories.quotes.Tokenization)]
        for key in keys:
            writer = self.store.open_writer(key)
            writer.write(TOKENS)
            writer.commit()
        return job.id

    def get_job(self, job_id: str) -> JobView:
        with self.database.read() as tx:
            return service.get_job(tx, self.principal.project_id, job_id)

    def get_lease(self, job_id: str) -> tuple[int, datetime]:
        """Return the lease's token and when it runs out."""
        with self.database.read() as tx:
            job = tx.get(Job, job_id)
            return job.lease_token, job.lease_expires_at

    def cancel(self, job_id: str) -> None:
        with self.database.transaction() as tx:
            service.cancel(tx, self.principal.project_id, job_id, now=self.clock.now())

    def list_events(self, job_id: str) -> list[EventView]:
        with self.database.read() as tx:
            return log.list_events(tx, job_id)

    def list_steps(self, job_id: str) -> list[int]:
        """Return the steps that have a metric, as they were logged."""
        with self.database.read() as tx:
            return [metric.step for metric in log.list_metrics(tx, job_id)]

    def list_artifacts(self, job_id: str) -> list[artifacts.ArtifactView]:
        with self.database.read() as tx:
            return artifacts.list_for_job(tx, self.principal.project_id, job_id)

    def list_starts(self) -> list[tuple[str, int]]:
        """Return job and pid of every worker that ever began."""
        path = self.settings.runs_dir / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def wait_for_state(self, job_id: str, *states: str) -> JobView:
        return wait_until(
            lambda: job if (job := self.get_job(job_id)).state in states else None, what=f"{job_id} is {states}"
        )

    def wait_for_step(self, job_id: str, step: int) -> None:
        wait_until(lambda: self.get_job(job_id).step >= step, what=f"{job_id} is at step {step}")

    def wait_for_death(self, supervisor: multiprocessing.process.BaseProcess, *, or_completed: str = "") -> None:
        """Wait until the supervisor has died, or the job is completed."""
        wait_until(
            lambda: (
                supervisor.exitcode is not None or (or_completed and self.get_job(or_completed).state == "completed")
            ),
            what="the supervisor died",
        )

    def wait_for_worker(self, count: int = 1) -> int:
        """Return the pid of the newest worker, once so many have begun."""
        wait_until(lambda: len(self.list_starts()) >= count, what=f"{count} workers have begun")
        return self.list_starts()[-1][1]

    def make_supervisor(self, *, store: ObjectStore | None = None, **options: Any) -> loop.Supervisor:
        """Return a supervisor that the test ticks itself, and closes."""
        owner = loop.get_owner(self.path)
        return loop.Supervisor(self.settings, self.database, store or self.store, self.clock, owner, **options)

    @contextlib.contextmanager
    def supervised(
        self, supervisor: loop.Supervisor | None = None, *, store: ObjectStore | None = None, **options: Any
    ) -> Iterator[loop.Supervisor]:
        """Run a supervisor in a thread of this process, and close it in the end."""
        supervisor = supervisor or self.make_supervisor(store=store, **options)
        stop = threading.Event()
        thread = threading.Thread(target=supervisor.run_forever, args=(stop,))
        thread.start()
        try:
            yield supervisor
        finally:
            stop.set()
            thread.join()

    def start_supervisor(self, *, armed: str = "") -> multiprocessing.process.BaseProcess:
        """Start a supervisor as a process, with fault points armed as in LUTHIER_FAULTS."""
        process = _processes.Process(target=_supervise, args=(self.settings.model_dump(), armed))
        process.start()
        self._supervisors.append(process)
        return process

    def close(self) -> None:
        for process in self._supervisors:
            process.kill()
            process.join()
            process.close()
        for _, pid in self.list_starts():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self.database.dispose()

    def assert_intact(self, job_id: str, *, steps: int = 6, events: list[str] = EVENTS) -> None:
        """Check that the job is complete: nothing lost, nothing double, one worker."""
        job = self.get_job(job_id)
        assert job.state == "completed", f"{job.state}: {job.error_message}"
        assert job.charged_nanos == job.price_nanos
        assert (job.step, job.total_steps, job.epochs_completed, job.tokens_done) == (steps, steps, 1, 10 * steps)
        log_ = self.list_events(job_id)
        assert [event.type for event in log_] == events
        assert [event.seq for event in log_] == list(range(1, len(events) + 1))
        assert [event.created_at for event in log_] == sorted(event.created_at for event in log_)
        assert self.list_steps(job_id) == list(range(1, steps + 1))
        kept = self.list_artifacts(job_id)
        assert Counter((one.kind, one.is_final) for one in kept) == Counter(
            [("adapter", False), ("adapter", True), ("merged", True)]
        )
        for one in kept:
            data = b"".join(self.store.open_reader(one.object_key))
            assert (len(data), hashlib.sha256(data).hexdigest()) == (one.size_bytes, one.sha256)
        self.assert_paid(job_id)
        assert [job for job, _ in self.list_starts()] == [job_id]
        assert not (self.settings.runs_dir / "doubles").exists()

    def assert_paid(self, job_id: str) -> None:
        """Check that a job that is over was paid for once, that nothing is held for it, and that the books add up."""
        job = self.get_job(job_id)
        with self.database.read() as tx:
            hold = ledger.find_hold(tx, job_id)
            kinds = [entry.kind for entry in ledger.list_entries(tx, self.principal.organization_id, job_id=job_id)]
        assert hold is not None
        assert (hold.amount_nanos, hold.captured_nanos) == (job.price_nanos, job.charged_nanos)
        assert kinds == ["hold", "capture" if job.charged_nanos else "release"]
        assert audit.verify(self.database).problems == []


@functools.cache
def _make_empty_database() -> Path:
    """Return a SQLite file at the newest schema; migrating each test's own would take longer than most tests."""
    path = Path(tempfile.mkdtemp(prefix="luthier-test-")) / "empty.db"
    atexit.register(shutil.rmtree, path.parent)
    database = Database(f"sqlite:///{path}")
    schema.upgrade(database)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.dispose()
    return path


def is_running(pid: int) -> bool:
    """Tell whether a process lives (a zombie does not)."""
    return processes.find_identity(pid) is not None


def _write_python(home: Path) -> Path:
    """Write a Python that runs the fake worker in place of the trainer, and everything else as it is."""
    path = home / "python"
    path.write_text(
        f'#!/bin/sh\n[ "$2" = luthier.training ] && exec "{sys.executable}" "{FAKE_WORKER}" "$3"\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    path.chmod(0o700)
    return path


def _supervise(settings: dict[str, Any], armed: str) -> None:
    faults._armed = faults._parse(armed)
    faults._hits.clear()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    loop.run(Settings(**settings), stop=stop)
