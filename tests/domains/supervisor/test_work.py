"""What is claimed, and what is refused before anything runs."""

from __future__ import annotations

import pytest

import factories
from luthier.billing import quotes
from luthier.catalog import service as catalog
from luthier.catalog.tables import BaseModelRow
from luthier.settings import Settings
from luthier.supervisor import work


def claim(tx, home, clock):
    return work.claim_tokenise(tx, Settings(home=home), now=clock.now(), claim_s=30.0)


@pytest.fixture
def ask(database, clock):
    """Return a function that asks for the tokens of a file with the model of today."""

    def request():
        with database.transaction() as tx:
            factories.make_model(tx, now=clock.now())
            digest = catalog.get_model(tx, factories.MODEL).tokenizer_digest
            return quotes.request(
                tx, file_sha256="a" * 64, file_object_key="files/1", model=factories.MODEL, tokenizer_digest=digest,
                max_seq_length=64, train_on_inputs="auto", now=clock.now(),
            )  # fmt: skip

    return request


def test_tokenise_when_the_model_is_the_one_asked_for_is_claimed(database, home, clock, ask):
    asked = ask()
    with database.transaction() as tx:
        assert claim(tx, home, clock).subject == asked.key


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_tokenise_when_the_model_is_another_by_now_fails_for_good(database, home, clock, ask, change):
    asked = ask()
    with database.transaction() as tx:
        row = tx.get(BaseModelRow, factories.MODEL)
        if change == "replaced":
            row.tokenizer_digest = "e" * 64
        else:
            row.removed_at = clock.now()
    with database.transaction() as tx:
        assert claim(tx, home, clock) is None
    with database.transaction() as tx:
        failed = quotes.get(tx, asked.key)
        assert failed.status == "failed"
        assert factories.MODEL in failed.error["message"]
        assert claim(tx, home, clock) is None  # it is not tried again
