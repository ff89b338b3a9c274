"""One run, ticked by hand over a journal that the test writes: what is in the rows, whatever fails in between."""

from __future__ import annotations

import contextlib
import hashlib
import time
from concurrent.futures import Executor, Future

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import factories
from luthier.artifacts import service as artifacts
from luthier.db import Database
from luthier.jobs import log, queue
from luthier.jobs import service as jobs
from luthier.protocol import journal, layout
from luthier.protocol.journal import FileEntry
from luthier.settings import Settings
from luthier.storage import DiskStore
from luthier.supervisor.run import Run
from luthier.supervisor.site import Site
from supervision import wait_until

STEPS = 4
TICKS = 8  # more than it takes to store every archive of the story


class ConnectionLost(Exception):
    """The answer to a COMMIT never came."""


class LossyDatabase(Database):
    """A database whose acknowledgements get lost: the commit is made, and the caller told that it failed."""

    losses: int = 0

    @contextlib.contextmanager
    def transaction(self):
        with super().transaction() as tx:
            yield tx
        if self.losses:
            self.losses -= 1
            raise ConnectionLost


class Immortal:
    """A worker that lives on whatever happens, and its launcher."""

    def __init__(self) -> None:
        self.kills = 0

    def find(self, _directory):
        return self

    def find_exit(self):
        return None

    def terminate(self) -> None:
        """Go on."""

    def kill(self) -> None:
        self.kills += 1


class AtOnce(Executor):
    """Does background work in the foreground."""

    def submit(self, task):
        future = Future()
        try:
            future.set_result(task())
        except Exception as error:  # noqa: BLE001  as an executor does
            future.set_exception(error)
        return future


class Bench:
    """A running job, its journal, and a run that is ticked by hand; the supervisor may be forgotten at any time."""

    def __init__(self, home, database, clock, *, give_up_s=600.0) -> None:
        home.joinpath("runs").mkdir(parents=True)
        self.clock = clock
        self.worker = Immortal()
        self.database = LossyDatabase(database.url)
        self.site = Site(
            Settings(home=home),
            self.database,
            DiskStore(home / "objects"),
            clock,
            self.worker,
            AtOnce(),
            give_up_s=give_up_s,
            policy=factories.POLICY,
        )
        with self.database.transaction() as tx:
            self.principal = factories.make_principal(tx, now=clock.now())
            self.job_id = factories.make_job(tx, self.principal, now=clock.now()).id
            claim = queue.claim(tx, owner=self.job_id, lease_s=30, now=clock.now())
        self.directory = home / "runs" / self.job_id
        self.directory.mkdir()
        self.run = Run(self.site, claim)

    def write(self, *messages) -> None:
        with journal.JournalWriter(self.directory / layout.JOURNAL) as writer:
            for message in messages:
                writer.write(msgspec.structs.replace(message, at=0.0))  # the same bytes whenever it is written

    def make_archive(self, name: str) -> FileEntry:
        (self.directory / name).write_text(name)
        return FileEntry(path=name, size_bytes=len(name), sha256=hashlib.sha256(name.encode()).hexdigest())

    def make_story(self) -> list[journal.Message]:
        return [
            journal.ModelLoaded(param_count=1000, trainable_param_count=100),
            journal.TrainingStarted(total_steps=STEPS, steps_per_epoch=STEPS, train_tokens=40),
            metric(1),
            metric(2),
            journal.CheckpointSaved(step=2, kind="adapter", archive=self.make_archive("checkpoint")),
            metric(3),
            metric(4),
            journal.EpochComplete(epoch=1, step=STEPS),
            journal.Exporting(step=STEPS),
            journal.Exported(kind="adapter", step=STEPS, archive=self.make_archive("adapter"), weights_sha256="0"),
            journal.Exported(kind="merged", step=STEPS, archive=self.make_archive("merged"), weights_sha256="1"),
            journal.Finished(step=STEPS, epochs_completed=1),
        ]

    def tick(self) -> None:
        """Tick as the loop does, with the job as it is now. Raises what the tick raises."""
        with self.database.read() as tx:
            held = queue.list_held(tx, self.job_id)
        self.run.tick(held[0] if held else None)

    def tick_often(self) -> None:
        for _ in range(TICKS):
            self.tick()

    def start_again(self) -> None:
        """Let another supervisor take over."""
        with self.database.transaction() as tx:
            (claim,) = queue.adopt(tx, owner=self.job_id, lease_s=30, now=self.clock.now())
        self.run = Run(self.site, claim)

    def get_job(self):
        with self.database.read() as tx:
            return jobs.get_job(tx, self.principal.project_id, self.job_id)

    def list_rows(self):
        """Return everything that was kept of the journal."""
        with self.database.read() as tx:
            job = jobs.get_job(tx, self.principal.project_id, self.job_id)
            metrics = [(one.seq, one.kind, one.step, one.loss) for one in log.list_metrics(tx, self.job_id)]
            events = [(one.seq, one.type, one.step) for one in log.list_events(tx, self.job_id)]
            kept = artifacts.list_for_job(tx, self.principal.project_id, self.job_id)
        return (
            (job.state, job.step, job.total_steps, job.tokens_done, job.epochs_completed, job.param_count),
            metrics,
            events,
            sorted((one.kind, one.step, one.is_final) for one in kept),
        )


def metric(step):
    return journal.Metric(kind="train", step=step, epoch=step / STEPS, loss=1.0 / step, tokens=10)


@pytest.fixture
def make_bench(tmp_path, database, clock):
    made = []

    def make(**options) -> Bench:
        made.append(Bench(tmp_path / f"home-{len(made)}", database, clock, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.database.dispose()


@pytest.fixture
def bench(make_bench):
    return make_bench()


def test_stretch_when_the_acknowledgement_of_its_commit_is_lost_is_kept_once(bench):
    bench.write(*bench.make_story()[:4])
    bench.database.losses = 1
    with pytest.raises(ConnectionLost):
        bench.tick()
    bench.tick()
    job, metrics, events, _ = bench.list_rows()
    assert job == ("running", 2, STEPS, 20, 0, 1000)
    assert [step for _, _, step, _ in metrics] == [1, 2]
    assert [kind for _, kind, _ in events].count("training_start") == 1


def test_run_when_ticked_with_a_claim_of_before_its_last_write_keeps_nothing_twice(bench):
    bench.write(*bench.make_story()[:4])
    with bench.database.read() as tx:
        (stale,) = queue.list_held(tx, bench.job_id)
    bench.tick()
    rows = bench.list_rows()
    bench.run.tick(stale)
    assert bench.list_rows() == rows


def test_outputs_when_the_cancellation_lands_before_their_rows_are_not_kept(bench):
    bench.write(*bench.make_story())
    while bench.get_job().state != "uploading":
        bench.tick()
    with bench.database.read() as tx:
        (loaded,) = queue.list_held(tx, bench.job_id)
    with bench.database.transaction() as tx:
        jobs.cancel(tx, bench.principal.project_id, bench.job_id, now=bench.clock.now())
    for _ in range(TICKS):
        bench.run.tick(loaded)  # as it was before the cancellation
    bench.tick_often()
    job, _, events, kept = bench.list_rows()
    assert job[:2] == ("cancel_requested", STEPS)
    assert kept == [("adapter", 2, False)]
    assert "model_upload_complete" not in [kind for _, kind, _ in events]


def test_failures_when_good_ticks_lie_between_them_do_not_add_up(make_bench):
    bench = make_bench(give_up_s=0.8)
    bench.run.fail(ConnectionLost("one hiccup"))
    end_at = time.monotonic() + 1.0
    wait_until(lambda: bench.tick() or time.monotonic() > end_at, what="a second of a worker's silence")
    bench.run.fail(ConnectionLost("another hiccup"))
    bench.tick()
    assert bench.worker.kills == 0


def test_failures_when_nothing_else_comes_end_the_run(make_bench):
    bench = make_bench(give_up_s=0.8)
    bench.tick()
    end_at = time.monotonic() + 1.0
    wait_until(
        lambda: bench.run.fail(ConnectionLost("down")) and time.monotonic() > end_at, what="a second of failures"
    )
    bench.tick()
    assert bench.worker.kills == 1


# I7: ingesting any prefix of a journal any number of times gives the same rows.
@settings(max_examples=12)
@given(data=st.data())
def test_journal_when_read_in_any_pieces_with_restarts_and_lost_answers_gives_the_same_rows(make_bench, data):
    at_once = make_bench()
    at_once.write(*at_once.make_story())
    at_once.tick_often()
    bench = make_bench()
    bench.write(*bench.make_story())
    path = bench.directory / layout.JOURNAL
    text = path.read_bytes()
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    for size in [*sorted(cuts), len(text)]:
        path.write_bytes(text[:size])
        bench.database.losses = data.draw(st.integers(0, 2))
        for _ in range(data.draw(st.integers(1, 3))):
            with contextlib.suppress(ConnectionLost):
                bench.tick()
        bench.database.losses = 0
        if data.draw(st.booleans()):
            bench.start_again()
    bench.start_again()
    bench.tick_often()
    assert bench.list_rows() == at_once.list_rows()
    assert bench.list_rows()[0] == ("uploading", STEPS, STEPS, 40, 1, 1000)
