from __future__ import annotations

import pytest

from factories import make_principal
from luthier.artifacts import service
from luthier.errors import InvalidRequest, NotFound

JOB = "ft-0b5e1234"


@pytest.fixture
def principal(database, clock):
    with database.transaction() as tx:
        return make_principal(tx, now=clock.now())


@pytest.fixture
def record(database, clock, principal):
    def record(kind, step, *, is_final=False, sha256="a" * 64):
        with database.transaction() as tx:
            return service.record(
                tx,
                project_id=principal.project_id,
                job_id=JOB,
                step=step,
                kind=kind,
                is_final=is_final,
                object_key=service.name_object(JOB, step=step, kind=kind, is_final=is_final),
                size_bytes=123,
                sha256=sha256,
                weights_sha256="b" * 64 if is_final else None,
                now=clock.now(),
            )

    return record


@pytest.fixture
def lora(record):
    return [
        record("adapter", 5),
        record("adapter", 10),
        record("adapter", 10, is_final=True),
        record("merged", 10, is_final=True),
    ]


def get(database, principal, checkpoint, step=None):
    with database.read() as tx:
        return service.get_download(tx, principal.project_id, JOB, checkpoint=checkpoint, step=step)


def test_object_names_are_one_for_each_archive():
    assert service.name_object(JOB, step=5, kind="adapter", is_final=False) == (
        "artifacts/ft-0b5e1234/checkpoint-00000005-adapter.tar.zst"
    )
    names = {
        service.name_object(JOB, step=step, kind=kind, is_final=is_final)
        for step in (1, 10)
        for kind in ("adapter", "merged", "model")
        for is_final in (True, False)
    }
    assert len(names) == 12


def test_record_when_recorded_before_changes_nothing(database, principal, record):
    first = record("adapter", 5)
    assert record("adapter", 5, sha256="c" * 64) == first
    with database.read() as tx:
        assert service.list_for_job(tx, principal.project_id, JOB) == [first]


def test_list_is_by_step_and_intermediate_before_final(database, principal, lora):
    with database.read() as tx:
        assert service.list_for_job(tx, principal.project_id, JOB) == lora


def test_list_shows_nothing_of_another_project(database, clock, lora):
    with database.transaction() as tx:
        other = make_principal(tx, now=clock.now())
        assert service.list_for_job(tx, other.project_id, JOB) == []


@pytest.mark.parametrize(
    ("checkpoint", "step", "index"),
    [("merged", None, 3), ("adapter", None, 2), ("adapter", 5, 0), ("adapter", 10, 2), ("model_output_path", None, 3), ("merged", 10, 3)],
)  # fmt: skip
def test_download_of_a_lora_job_finds_the_archive(database, principal, lora, checkpoint, step, index):
    assert get(database, principal, checkpoint, step) == lora[index]


def test_download_of_a_full_job_is_its_model(database, principal, record):
    intermediate, final = record("model", 5), record("model", 10, is_final=True)
    assert get(database, principal, "model_output_path") == final
    assert get(database, principal, "model_output_path", 5) == intermediate
    with pytest.raises(InvalidRequest, match="trained all weights") as caught:
        get(database, principal, "adapter")
    assert "model_output_path" in caught.value.hint


def test_download_when_the_archive_is_missing_names_what_there_is(database, principal, lora):
    with pytest.raises(NotFound, match="step 5") as caught:
        get(database, principal, "merged", 5)
    assert caught.value.hint == (
        "there is: adapter of step 5, adapter of step 10, adapter of step 10 (final), merged of step 10 (final)"
    )


def test_download_when_only_intermediate_ones_are_there_says_so(database, principal, record):
    record("adapter", 5)
    with pytest.raises(NotFound, match="a final merged archive"):
        get(database, principal, "merged")


def test_download_when_there_is_nothing_yet_says_what_to_wait_for(database, principal):
    with pytest.raises(NotFound, match="no checkpoint yet"):
        get(database, principal, "merged")
