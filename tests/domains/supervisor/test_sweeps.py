"""What deletions leave in the store goes, after a while; what anybody may still ask for stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import factories
from factories import POLICY
from luthier import home as home_dir
from luthier.artifacts import service as artifacts
from luthier.billing import quotes
from luthier.catalog import service as catalog
from luthier.files import service as files
from luthier.jobs import service as jobs
from luthier.settings import Settings
from luthier.storage import MemoryStore
from luthier.supervisor import sweeps
from luthier.supervisor.launchers.subprocess import SubprocessLauncher
from luthier.supervisor.site import Site

LONG_S = 3601  # past the time that deleted things are kept


@pytest.fixture
def site(home, database, clock):
    settings = Settings(home=home)
    home_dir.make_folders(settings)
    with ThreadPoolExecutor(1) as background:
        yield Site(
            settings=settings,
            database=database,
            store=MemoryStore(),
            clock=clock,
            launcher=SubprocessLauncher(settings),
            background=background,
            give_up_s=1.0,
            policy=POLICY,
        )


@pytest.fixture
def owner(database, clock):
    with database.transaction() as tx:
        return factories.make_principal(tx, now=clock.now())


def make_job(site, owner, *, state="completed") -> jobs.JobView:
    """Make a job with an archive and tokens that are really there."""
    now = site.clock.now()
    with site.database.transaction() as tx:
        job = factories.make_job(tx, owner, now=now, state=state)
        key = artifacts.name_object(job.id, step=10, kind="merged", is_final=True)
        artifacts.record(
            tx,
            project_id=owner.project_id,
            job_id=job.id,
            step=10,
            kind="merged",
            is_final=True,
            object_key=key,
            size_bytes=5,
            sha256="ab" * 32,
            weights_sha256=None,
            now=now,
        )
        tokens = [quotes.get(tx, one).object_key for one in quotes.list_settled(tx)]
    for one in (key, *tokens):
        site.store.put_bytes(one, b"bytes")
    return job


def delete_job(site, owner, job, *, force=False) -> None:
    with site.database.transaction() as tx:
        jobs.delete(tx, owner.project_id, job.id, force=force, now=site.clock.now())


def delete_file(site, owner, job) -> None:
    with site.database.transaction() as tx:
        files.delete_file(tx, owner.project_id, job.training_file_id, now=site.clock.now())


def sweep(site) -> None:
    sweeps.sweep(site, held=())


def list_archives(site) -> list[str]:
    return list(site.store.list_keys("artifacts/"))


def list_tokens(site) -> list[str]:
    return list(site.store.list_keys("tokens/"))


def list_rows(site, owner, job) -> list[artifacts.ArtifactView]:
    with site.database.read() as tx:
        return artifacts.list_for_job(tx, owner.project_id, job.id)


def list_counts(site) -> list[str]:
    with site.database.read() as tx:
        return quotes.list_settled(tx)


def test_archives_when_their_job_is_deleted_go_after_an_hour_and_no_others(site, owner):
    kept, deleted = make_job(site, owner), make_job(site, owner)
    delete_job(site, owner, deleted)
    sweep(site)
    assert len(list_archives(site)) == 2  # somebody may be downloading it
    site.clock.advance(LONG_S)
    sweep(site)
    assert [artifacts.get_job_id(key) for key in list_archives(site)] == [kept.id]
    assert (len(list_rows(site, owner, kept)), list_rows(site, owner, deleted)) == (1, [])


def test_archives_when_a_crash_left_them_without_rows_go_too(site, owner):
    job = make_job(site, owner)
    delete_job(site, owner, job)
    site.clock.advance(LONG_S)
    with site.database.transaction() as tx:
        artifacts.forget(tx, [job.id])
    sweep(site)
    assert list_archives(site) == []


def test_archives_when_their_deleted_job_still_runs_stay_until_it_has_ended(site, owner):
    job = make_job(site, owner, state="running")
    delete_job(site, owner, job, force=True)
    site.clock.advance(LONG_S)
    sweep(site)
    assert len(list_archives(site)) == 1


def test_tokens_when_the_file_is_there_stay(site, owner):
    job = make_job(site, owner)
    delete_job(site, owner, job)
    site.clock.advance(LONG_S)
    sweep(site)
    assert len(list_tokens(site)) == len(list_counts(site)) == 1


def test_tokens_when_the_file_is_deleted_go_after_an_hour(site, owner):
    job = make_job(site, owner)
    delete_file(site, owner, job)
    sweep(site)
    assert len(list_tokens(site)) == 1
    site.clock.advance(LONG_S)
    sweep(site)
    assert list_tokens(site) == list_counts(site) == []


def test_tokens_when_another_project_has_the_same_content_stay(site, owner):
    job = make_job(site, owner)
    with site.database.transaction() as tx:
        sha256 = files.get_file(tx, owner.project_id, job.training_file_id).sha256
        other = factories.make_principal(tx, now=site.clock.now())
        factories.make_file(tx, other, now=site.clock.now(), sha256=sha256)
    delete_file(site, owner, job)
    site.clock.advance(LONG_S)
    sweep(site)
    assert len(list_tokens(site)) == len(list_counts(site)) == 1


def test_tokens_when_a_job_that_is_not_over_needs_them_stay(site, owner):
    job = make_job(site, owner, state="running")
    delete_file(site, owner, job)
    site.clock.advance(LONG_S)
    sweep(site)
    assert len(list_tokens(site)) == len(list_counts(site)) == 1


def test_tokens_when_the_model_is_removed_go(site, owner):
    make_job(site, owner)
    with site.database.transaction() as tx:
        model = tx.get(factories.BaseModelRow, factories.MODEL)
        model.is_builtin = 0
        catalog.remove_model(tx, factories.MODEL, now=site.clock.now())
    sweep(site)
    assert list_tokens(site) == list_counts(site) == []


def test_tokens_of_an_attempt_that_came_second_go_and_those_of_the_first_stay(site, owner):
    make_job(site, owner)
    [key], [first] = list_counts(site), list_tokens(site)
    second = quotes.make_object_key(key)
    site.store.put_bytes(second, b"bytes")
    with site.database.transaction() as tx:
        quotes.record(tx, key, object_key=second, counts=factories.make_counts(), now=site.clock.now())
    sweep(site)
    assert list_tokens(site) == [first]
    with site.database.read() as tx:
        assert quotes.get(tx, key).object_key == first


def test_tokens_that_are_being_counted_stay(site, owner):
    """The bytes come before the row says ready."""
    now = site.clock.now()
    with site.database.transaction() as tx:
        factories.make_model(tx, now=now)
        order = request_and_claim(tx, now)
    key = quotes.make_object_key(order.key)
    site.store.put_bytes(key, b"bytes")
    site.clock.advance(LONG_S)
    sweep(site)
    assert list_tokens(site) == [key]


def test_answer_of_a_count_that_was_forgotten_changes_nothing(site, owner):
    """A supervisor that was suspended for long wakes up and tells what it found."""
    now = site.clock.now()
    with site.database.transaction() as tx:
        key = request_and_claim(tx, now).key
        quotes.reject(tx, key, {"code": "c", "message": "m", "hint": None}, now=now)
    sweep(site)
    with site.database.transaction() as tx:
        quotes.renew(tx, key, now=now, claim_s=1)
        quotes.fail(tx, key, "late", now=now)
        quotes.reject(tx, key, {"code": "c", "message": "m", "hint": None}, now=now)
        quotes.record(tx, key, object_key=quotes.make_object_key(key), counts=factories.make_counts(), now=now)
        assert quotes.list_settled(tx) == []


def request_and_claim(tx, now) -> quotes.TokeniseOrder:
    quotes.request(
        tx,
        file_sha256="ab" * 32,
        file_object_key="files/one",
        model=factories.MODEL,
        tokenizer_digest="cd" * 32,
        max_seq_length=128,
        train_on_inputs="auto",
        now=now,
    )
    order = quotes.claim(tx, now=now, claim_s=60)
    assert order is not None
    return order
