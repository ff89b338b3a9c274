"""The journal becomes the same rows whatever is visible when, and however often the reader starts again."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import factories
from luthier.artifacts import service as artifacts
from luthier.jobs import log, queue
from luthier.jobs import service as jobs
from luthier.jobs.queue import LeaseLost
from luthier.protocol import journal
from luthier.protocol.journal import FileEntry, JournalCorrupt
from luthier.supervisor import ingest

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
STARTED_AT = NOW - timedelta(hours=1)


def entry(path: str) -> FileEntry:
    return FileEntry(path=path, size_bytes=3, sha256="ab" * 32)


def metric(step, **changes):
    fields = {
        "kind": "train",
        "step": step,
        "epoch": step / 4,
        "loss": 1.0 / step,
        "tokens": 10,
        "seconds_remaining": 9.0,
    }
    return journal.Metric(**(fields | changes))


BEGINNING = [
    journal.Started(pid=1, device="cpu", precision="fp32", threads=1, versions={}),
    journal.ModelLoaded(param_count=1000, trainable_param_count=100),
    journal.TrainingStarted(total_steps=4, steps_per_epoch=4, train_tokens=40),
    metric(1),
    metric(2),
    metric(2, kind="eval", tokens=0, seconds_remaining=None),
    journal.CheckpointSaved(step=2, kind="adapter", archive=entry("checkpoints/a")),
    journal.Notice(message="one row was cut", step=2),
    metric(3),
    journal.Working(step=4, tokens=5),
    metric(4),
    journal.CheckpointSaved(step=4, kind="adapter", archive=entry("checkpoints/b")),
    journal.EpochComplete(epoch=1, step=4),
]
END = [
    journal.Exporting(step=4),
    journal.Exported(kind="adapter", step=4, archive=entry("output/a"), weights_sha256="0"),
    journal.Exported(kind="merged", step=4, archive=entry("output/b"), weights_sha256="1"),
    journal.Finished(step=4, epochs_completed=1),
]
STORY = [*BEGINNING, *END]

EVENTS = [
    "training_start",
    "eval_complete",
    "checkpoint_save",
    "warning",
    "checkpoint_save",
    "epoch_complete",
    "training_complete",
    "model_compressing",
    "model_compression_complete",
    "model_uploading",
    "model_upload_complete",
]


@pytest.fixture
def claim(database, clock):
    """A running job's claim, from a real queue."""
    with database.transaction() as tx:
        principal = factories.make_principal(tx, now=STARTED_AT)
        factories.make_job(tx, principal, now=STARTED_AT)
        return queue.claim(tx, owner="me", lease_s=30, now=STARTED_AT)


def make_claim():
    return queue.Claim(
        job_id="ft-1", token=1, project_id="proj-1", state="running", created_at=STARTED_AT, started_at=STARTED_AT,
        cancel_requested_at=None, base_model="luthier/tiny", base_model_revision=None, hyperparameters=None, training_file_id="file-1",
        validation_file_id=None, train_tokenization="t", validation_tokenization=None, output_name="acme/tiny-1",
        journal_offset=0, step=0, total_steps=None, tokens_done=0, heard_at=None,
    )  # fmt: skip


class Reader:
    """Does what a run does with a journal, the store and the database left out."""

    def __init__(self, path, claim) -> None:
        self.path = path
        self.claim = claim
        self.kept = set()
        self.offset = 0
        self.metrics = []
        self.steps = []
        self.noted = {}
        self.ending = None

    def start_again(self) -> None:
        """Forget what a supervisor only has in memory."""
        self.kept = set()
        self.ending = None

    def read_all(self) -> None:
        while not self.advance():
            pass

    def advance(self) -> bool:
        messages, end = journal.read(self.path, self.offset)
        stretch = ingest.cut(messages, end, claim=self.claim, kept=self.kept)
        self.ending = stretch.ending
        if stretch.messages or stretch.begins_upload:
            batch = ingest.translate(stretch, self.claim, now=NOW)
            assert batch.update.journal_offset == stretch.end
            self.metrics += batch.metrics
            self.steps += batch.steps
            noted = dataclasses.asdict(batch.update)
            self.noted |= {name: value for name, value in noted.items() if value is not None}
            self.claim = ingest.follow(self.claim, batch)
            self.offset = stretch.end
        self.kept.update(stretch.wanted)
        return stretch.is_idle

    def list_event_types(self):
        return [
            step.type if isinstance(step, ingest.Event) else step.event_type
            for step in self.steps
            if not isinstance(step, ingest.Artifact)
        ]


def write_story(path, messages) -> bytes:
    path.unlink(missing_ok=True)
    with journal.JournalWriter(path) as writer:
        for message in messages:
            writer.write(message)
    return path.read_bytes()


def read_at_once(path, claim) -> Reader:
    reader = Reader(path, claim)
    reader.read_all()
    return reader


def test_journal_when_read_at_once_gives_every_row(tmp_path):
    path = tmp_path / "journal.jsonl"
    write_story(path, STORY)
    reader = read_at_once(path, make_claim())
    assert reader.list_event_types() == EVENTS
    assert [(m.kind, m.step) for m in reader.metrics] == [
        ("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4),
    ]  # fmt: skip
    kept = [step for step in reader.steps if isinstance(step, ingest.Artifact)]
    assert [(one.kind, one.step, one.is_final) for one in kept] == [
        ("adapter", 2, False), ("adapter", 4, False), ("adapter", 4, True), ("merged", 4, True),
    ]  # fmt: skip
    assert reader.noted["tokens_done"] == 40
    assert reader.noted["step"] == 4
    assert reader.noted["param_count"] == 1000
    assert reader.ending == STORY[-1]
    assert reader.claim.state == "uploading"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_journal_when_read_in_any_pieces_with_any_restarts_gives_the_same_rows(tmp_path, data):
    path = tmp_path / "journal.jsonl"
    text = write_story(path, STORY)
    at_once = read_at_once(path, make_claim())
    path.write_bytes(b"")
    reader = Reader(path, make_claim())
    visible = [*sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8))), len(text)]
    for size in visible:
        path.write_bytes(text[:size])
        for _ in range(data.draw(st.integers(1, 3))):
            reader.advance()
            if data.draw(st.booleans()):
                reader.start_again()
    reader.read_all()
    assert reader.metrics == at_once.metrics
    assert reader.steps == at_once.steps
    assert {**reader.noted, "heard_at": None} == {**at_once.noted, "heard_at": None}
    assert reader.ending == at_once.ending


def test_outputs_when_the_worker_died_before_it_finished_are_not_stored(tmp_path):
    path = tmp_path / "journal.jsonl"
    write_story(path, STORY[:-1])
    reader = read_at_once(path, make_claim())
    assert reader.claim.state == "compressing"
    assert not any(isinstance(step, ingest.Artifact) and step.is_final for step in reader.steps)


def test_outputs_when_the_job_was_cancelled_are_not_stored(tmp_path):
    path = tmp_path / "journal.jsonl"
    write_story(path, STORY)
    reader = read_at_once(path, dataclasses.replace(make_claim(), state="cancel_requested"))
    assert reader.claim.state == "cancel_requested"
    assert reader.list_event_types() == [*EVENTS[:6], "training_complete"]
    assert not any(isinstance(step, ingest.Artifact) and step.is_final for step in reader.steps)
    assert reader.ending == STORY[-1]


@pytest.mark.parametrize("message", [metric(2**60), metric(-1), journal.EpochComplete(epoch=1, step=2**63)])
def test_number_when_no_worker_of_ours_would_write_it_is_corruption(tmp_path, message):
    path = tmp_path / "journal.jsonl"
    write_story(path, [message])
    with pytest.raises(JournalCorrupt, match="step"):
        read_at_once(path, make_claim())


@pytest.mark.parametrize(("at", "expected"), [(1e300, NOW), (-1e300, STARTED_AT), (0.0, STARTED_AT)])
def test_time_when_outside_the_jobs_life_is_moved_into_it(tmp_path, at, expected):
    path = tmp_path / "journal.jsonl"
    write_story(path, [metric(1, at=at)])
    assert read_at_once(path, make_claim()).metrics[0].logged_at == expected


def test_write_when_lease_is_lost_keeps_nothing(database, claim, tmp_path):
    path = tmp_path / "journal.jsonl"
    write_story(path, STORY[:5])
    messages, end = journal.read(path)
    stretch = ingest.cut(messages, end, claim=claim, kept=set())
    batch = ingest.translate(stretch, claim, now=NOW)
    with database.transaction() as tx:
        queue.adopt(tx, owner="another", lease_s=30, now=NOW)
    with pytest.raises(LeaseLost), database.transaction() as tx:
        ingest.write(tx, claim, batch, now=NOW)
    with database.read() as tx:
        assert log.list_metrics(tx, claim.job_id) == []
        assert jobs.get_job(tx, claim.project_id, claim.job_id).step == 0


def test_write_keeps_rows_offset_and_artifacts_together(database, claim, tmp_path):
    path = tmp_path / "journal.jsonl"
    write_story(path, STORY[:8])
    reader = Reader(path, claim)
    reader.read_all()
    messages, end = journal.read(path)
    archive = ingest.name_archive(claim.job_id, STORY[6])
    stretch = ingest.cut(messages, end, claim=claim, kept={archive})
    with database.transaction() as tx:
        ingest.write(tx, claim, ingest.translate(stretch, claim, now=NOW), now=NOW)
    with database.read() as tx:
        held = queue.list_held(tx, "me")[0]
        kept = artifacts.list_for_job(tx, claim.project_id, claim.job_id)
        types = [event.type for event in log.list_events(tx, claim.job_id)]
    assert (held.journal_offset, held.step, held.tokens_done) == (path.stat().st_size, 2, 20)
    assert [(one.object_key, one.sha256) for one in kept] == [(archive.key, "ab" * 32)]
    assert types[-4:] == EVENTS[:4]
