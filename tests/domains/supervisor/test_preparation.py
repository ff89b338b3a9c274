"""What a worker is told about its job."""

from __future__ import annotations

import pytest

import factories
from luthier.catalog.tables import BaseModelRow
from luthier.files.tables import File
from luthier.protocol import layout, spec
from supervision import TOKENS, Workshop


@pytest.fixture
def workshop(home):
    workshop = Workshop(home)
    yield workshop
    workshop.close()


@pytest.mark.parametrize(
    ("source", "reference", "fetched_from", "told"),
    [
        ("hub", "x/y", "the Hugging Face hub, x/y at 01", ("the Hugging Face hub, x/y at 01", "x/y")),
        # The path of a folder is the server's own affair: what is told is published with the model.
        ("folder", "/srv/private", "the folder /srv/private", ("a folder on the server", None)),
        ("builtin", factories.MODEL, "the package p 1", ("the package p 1", None)),
    ],
)
def test_spec_when_written_names_the_origin_of_the_weights(workshop, source, reference, fetched_from, told):
    job_id = workshop.make_job()
    with workshop.database.transaction() as tx:
        row = tx.get(BaseModelRow, factories.MODEL)
        row.source, row.reference, row.fetched_from = source, reference, fetched_from
    with workshop.supervised():
        workshop.wait_for_state(job_id, "completed")
    written = spec.read_spec(workshop.settings.runs_dir / job_id / layout.SPEC)
    assert (written.base_model.fetched_from, written.base_model.repository) == told


def test_spec_when_there_is_a_validation_file_names_it_as_the_user_does(workshop):
    now = workshop.clock.now()
    with workshop.database.transaction() as tx:
        inputs = factories.make_inputs(tx, workshop.principal, now=now, validation_tokens=100)
        tx.get(BaseModelRow, inputs.model).path = str(workshop.settings.models_dir)
        sha256 = tx.get(File, inputs.validation_file).sha256
        job = factories.make_job(tx, workshop.principal, now=now, inputs=inputs, n_evals=1)
        keys = [row.object_key for row in tx.query(factories.quotes.Tokenization)]
    for key in keys:
        writer = workshop.store.open_writer(key)
        writer.write(TOKENS)
        writer.commit()
    with workshop.supervised():
        workshop.wait_for_state(job.id, "completed")
    recipe = spec.read_spec(workshop.settings.runs_dir / job.id / layout.SPEC).recipe
    assert (recipe.validation_file, recipe.validation_file_sha256) == ("validation.jsonl", sha256)
