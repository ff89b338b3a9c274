from __future__ import annotations

import hashlib

import httpx
import pytest

import factories
from luthier.accounts import service as accounts
from luthier.artifacts import service as artifacts

CONTENT = bytes(range(256)) * 9000  # more than one block of the store
MERGED = {"checkpoint": "merged"}


@pytest.fixture
def job(service):
    """A finished LoRA job with an intermediate adapter and both final archives in the store."""
    now = service.clock.now()
    with service.database.transaction() as tx:
        owner = accounts.authenticate(tx, service.api_key, master_key=service.master_key, now=now)
        job = factories.make_job(tx, owner, now=now, state="completed", suffix="mine")
    for step, kind, is_final in ((5, "adapter", False), (10, "adapter", True), (10, "merged", True)):
        content = CONTENT if kind == "merged" else f"{kind} of step {step}".encode()
        key = artifacts.name_object(job.id, step=step, kind=kind, is_final=is_final)
        writer = service.store.open_writer(key)
        writer.write(content)
        writer.commit()
        with service.database.transaction() as tx:
            artifacts.record(
                tx, project_id=job.project_id, job_id=job.id, step=step, kind=kind, is_final=is_final, object_key=key,
                size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), weights_sha256=None, now=now,
            )  # fmt: skip
    return job


@pytest.fixture
def get(client, job):
    """Download an archive of the job, with query parameters and headers."""

    def get(query: dict, **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.get("/v1/finetune/download", params={"ft_id": job.id, **query}, headers=names)

    return get


def test_download_gives_the_whole_archive_under_the_models_name(get, job):
    answer = get(MERGED)
    assert answer.status_code == 200
    assert answer.content == CONTENT
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["content-type"] == "application/zstd"
    assert answer.headers["accept-ranges"] == "bytes"
    name = job.output_name.rpartition("/")[2]
    assert f'filename="{name}-merged.tar.zst"' in answer.headers["content-disposition"]


def test_download_of_a_range_is_206_with_the_whole_size(get):
    size = len(CONTENT)
    for asked, start, end in (
        ("bytes=0-1", 0, 2), ("bytes=5-5", 5, 6), (f"bytes={size - 3}-", size - 3, size), ("bytes=-7", size - 7, size),
        (f"bytes=1000000-{size + 10}", 1_000_000, size), (f"bytes=-{size + 10}", 0, size),
    ):  # fmt: skip
        answer = get(MERGED, range=asked)
        assert answer.status_code == 206, asked
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert answer.headers["content-length"] == str(end - start)
        assert answer.content == CONTENT[start:end]


def test_download_in_parts_is_the_whole(get):
    first = get(MERGED, range="bytes=0-1234567")
    rest = get(MERGED, range="bytes=1234568-", if_range=first.headers["etag"])
    assert (rest.status_code, first.content + rest.content) == (206, CONTENT)


def test_download_of_a_range_of_other_bytes_gets_the_whole(get):
    answer = get(MERGED, range="bytes=5-", if_range='"something else"')
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_download_of_what_is_no_single_range_gets_the_whole(get):
    for asked in ("bytes=0-1,5-6", "lines=1-2", "bytes=", "bytes=-", "bytes=9-3", "bytes=x-y"):
        assert get(MERGED, range=asked).status_code == 200, asked


def test_download_of_a_range_behind_the_end_is_416_that_says_the_size(get):
    answer = get(MERGED, range=f"bytes={len(CONTENT)}-")
    assert answer.status_code == 416
    assert str(len(CONTENT)) in answer.json()["error"]["message"]


def test_download_of_each_checkpoint_is_its_own_bytes(get):
    for query, content in (
        ({}, CONTENT),
        ({"checkpoint": "model_output_path"}, CONTENT),
        ({"checkpoint": "adapter"}, b"adapter of step 10"),
        ({"checkpoint": "merged", "checkpoint_step": 0}, CONTENT),
        ({"checkpoint": "merged", "checkpoint_step": 5}, b"adapter of step 5"),  # as `tg ft download JOB:5` asks
        ({"checkpoint_step": 5}, b"adapter of step 5"),
        ({"checkpoint": "merged", "checkpoint_step": 10}, CONTENT),
        ({"checkpoint": "adapter", "checkpoint_step": 10}, b"adapter of step 10"),
    ):
        assert get(query).content == content, query


def test_download_of_a_step_without_archive_is_404_that_names_those_there_are(get):
    answer = get({"checkpoint_step": 7})
    assert answer.status_code == 404
    assert "step 5" in answer.json()["error"]["hint"]


def test_download_of_an_unknown_kind_is_422_that_names_the_field(get):
    answer = get({"checkpoint": "everything"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "checkpoint")


def test_download_when_the_bytes_are_gone_is_404_that_says_so(get, service, job):
    service.store.delete(artifacts.name_object(job.id, step=10, kind="merged", is_final=True))
    assert get(MERGED).json()["error"]["code"] == "content_missing"
