from __future__ import annotations

import threading

import pytest

from factories import make_counts
from luthier.billing import quotes

CLAIM_S = 60.0
ERROR = {"code": "no_trainable_token", "message": "no row has one", "hint": "add assistant messages"}


def request(tx, clock, **changes):
    settings = {
        "file_sha256": "a" * 64,
        "file_object_key": "files/1",
        "model": "luthier/tiny",
        "tokenizer_digest": "d" * 64,
        "max_seq_length": 512,
        "train_on_inputs": "auto",
    }
    return quotes.request(tx, **(settings | changes), now=clock.now())


def claim(tx, clock):
    return quotes.claim(tx, now=clock.now(), claim_s=CLAIM_S)


def test_request_when_asked_again_is_the_same_row(database, clock):
    with database.transaction() as tx:
        first = request(tx, clock)
        assert request(tx, clock) == first
        assert claim(tx, clock).key == first.key
        assert claim(tx, clock) is None


@pytest.mark.parametrize(
    "change",
    [{"file_sha256": "b" * 64}, {"tokenizer_digest": "e" * 64}, {"max_seq_length": 256}, {"train_on_inputs": True}, {"train_on_inputs": False}],
)  # fmt: skip
def test_request_when_anything_that_changes_the_tokens_differs_is_another_row(database, clock, change):
    with database.transaction() as tx:
        assert request(tx, clock, **change).key != request(tx, clock).key


def test_request_when_the_first_file_is_gone_takes_the_newer_place(database, clock):
    with database.transaction() as tx:
        request(tx, clock)
        request(tx, clock, file_object_key="files/2")
        assert claim(tx, clock).file_object_key == "files/2"


def test_claim_gives_what_the_command_takes(database, clock):
    with database.transaction() as tx:
        request(tx, clock, train_on_inputs=False)
        order = claim(tx, clock)
    assert (order.file_sha256, order.model, order.max_seq_length) == ("a" * 64, "luthier/tiny", 512)
    assert order.train_on_inputs == "false"


def test_claim_takes_the_oldest_first(database, clock):
    with database.transaction() as tx:
        keys = []
        for digest in "abc":
            clock.advance(1)
            keys.append(request(tx, clock, tokenizer_digest=digest * 64).key)
        assert [claim(tx, clock).key for _ in keys] == keys


def test_record_keeps_the_counts_for_good(database, clock):
    with database.transaction() as tx:
        key = request(tx, clock).key
        claim(tx, clock)
        quotes.record(tx, key, object_key="tokens/1", counts=make_counts(tokens=77), now=clock.now())
        quotes.fail(tx, key, "a claim that had run out", now=clock.now())
        quotes.reject(tx, key, ERROR, now=clock.now())
        view = request(tx, clock)
    assert (view.status, view.object_key, view.counts["tokens"]) == ("ready", "tokens/1", 77)
    with database.read() as tx:
        assert quotes.get(tx, key) == view


def test_reject_is_final(database, clock):
    with database.transaction() as tx:
        key = request(tx, clock).key
        claim(tx, clock)
        quotes.reject(tx, key, ERROR, now=clock.now())
        view = request(tx, clock)
        assert (view.status, view.error) == ("rejected", ERROR)
        assert claim(tx, clock) is None


def test_fail_is_tried_again_until_the_attempts_are_used_up(database, clock):
    with database.transaction() as tx:
        key = request(tx, clock).key
        for _ in range(quotes.MAX_ATTEMPTS):
            assert claim(tx, clock).key == key
            quotes.fail(tx, key, "out of memory", now=clock.now())
        assert claim(tx, clock) is None
        view = quotes.get(tx, key)
    assert view.status == "failed"
    assert view.error["message"] == "out of memory"


def test_request_when_it_failed_tries_again_unless_the_caller_asked_before(database, clock):
    with database.transaction() as tx:
        key = request(tx, clock).key
        for _ in range(quotes.MAX_ATTEMPTS):
            claim(tx, clock)
            quotes.fail(tx, key, "out of memory", now=clock.now())
        assert request(tx, clock, retry_failed=False).status == "failed"
        assert request(tx, clock).status == "queued"
        assert claim(tx, clock).key == key


def test_claim_when_a_claim_ran_out_hands_it_out_again_and_then_gives_up(database, clock):
    with database.transaction() as tx:
        key = request(tx, clock).key
        for _ in range(quotes.MAX_ATTEMPTS):
            assert claim(tx, clock).key == key
            assert claim(tx, clock) is None
            clock.advance(CLAIM_S)
        assert claim(tx, clock) is None
        view = quotes.get(tx, key)
    assert view.status == "failed"
    assert "interrupted 3 times" in view.error["message"]


def test_renew_keeps_a_claim_from_running_out(database, clock):
    with database.transaction() as tx:
        key = request(tx, clock).key
        claim(tx, clock)
        clock.advance(CLAIM_S - 1)
        quotes.renew(tx, key, now=clock.now(), claim_s=CLAIM_S)
        clock.advance(CLAIM_S - 1)
        assert claim(tx, clock) is None
        clock.advance(1)
        assert claim(tx, clock).key == key


def test_get_when_never_requested_is_our_own_fault(database):
    with database.read() as tx, pytest.raises(AssertionError, match="never requested"):
        quotes.get(tx, "nothing")


def test_same_request_from_many_threads_is_one_row(database, clock):
    keys, start = [], threading.Barrier(6)

    def ask():
        start.wait()
        with database.transaction() as tx:
            keys.append(request(tx, clock).key)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 6
    assert len(set(keys)) == 1


def test_supervisors_that_claim_at_the_same_time_get_each_row_once(database, clock):
    with database.transaction() as tx:
        keys = [request(tx, clock, tokenizer_digest=f"{number:064d}").key for number in range(12)]
    taken, start = [], threading.Barrier(3)

    def work():
        start.wait()
        while True:
            with database.transaction() as tx:
                order = claim(tx, clock)
            if order is None:
                return
            taken.append(order.key)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(keys)


def test_renew_with_nothing_gives_the_claim_and_its_attempt_back(database, clock):
    with database.transaction() as tx:
        key = request(tx, clock).key
        for _ in range(quotes.MAX_ATTEMPTS + 1):
            assert claim(tx, clock).key == key
            quotes.renew(tx, key, now=clock.now(), claim_s=0.0)
        assert quotes.get(tx, key).status == "queued"


def test_claim_when_another_followed_it_is_void(database, clock):
    with database.transaction() as tx:
        key = request(tx, clock).key
        first = claim(tx, clock)
        clock.advance(CLAIM_S)
        second = claim(tx, clock)
        assert not quotes.has_claim(tx, key, first.claim)
        assert quotes.has_claim(tx, key, second.claim)
