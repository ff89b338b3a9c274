"""The quote counts what the trainer does: its steps, its evaluations, its tokens."""

import json
import tempfile
from pathlib import Path

import msgspec
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.billing import prices, pricing
from luthier.billing.pricing import TokenCounts
from luthier.datasets.tokenise import tokenise_file
from luthier.datasets.tokens import open_tokens
from luthier.training.batches import Rows
from luthier.training.plan import make_plan
from training_runs import HYPERPARAMETERS

MAX_SEQ_LENGTH = 48
TEXTS = st.lists(st.text("ab c\né", min_size=1, max_size=80).filter(str.strip), min_size=1, max_size=25)


def _tokenise(tiny, texts):
    """Return what the trainer reads of these rows, and what the price is made of."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.jsonl", Path(folder) / "data.tokens"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        counts = tokenise_file(data, tiny, out, max_seq_length=MAX_SEQ_LENGTH, train_on_inputs="auto")
        rows = Rows(open_tokens(out), torch.device("cpu"))
    return rows, TokenCounts(rows=counts.used_rows, tokens=counts.tokens, packs=counts.packs)


@settings(max_examples=60)
@given(
    texts=TEXTS,
    validation_texts=TEXTS,
    packing=st.booleans(),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    n_epochs=st.integers(1, 3),
    n_evals=st.integers(0, 12),
)
def test_quote_when_the_trainer_plans_the_same_job_has_its_steps_evaluations_and_tokens(
    tiny, texts, validation_texts, packing, batch_size, accumulation, n_epochs, n_evals
):
    rows, train = _tokenise(tiny, texts)
    validation_rows, validation = _tokenise(tiny, validation_texts)
    chosen = msgspec.structs.replace(
        HYPERPARAMETERS,
        packing=packing,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        n_epochs=n_epochs,
        n_evals=n_evals,
        max_seq_length=MAX_SEQ_LENGTH,
    )
    plan = make_plan(rows.lengths, chosen)
    quote = pricing.make_quote(
        train=train,
        validation=validation,
        n_epochs=n_epochs,
        n_evals=n_evals,
        sequences_a_step=batch_size * accumulation,
        packing=packing,
        max_seq_length=MAX_SEQ_LENGTH,
        rate_nanos=480,
        prices=prices.load(),
    )
    assert (quote.total_steps, quote.evaluations) == (plan.total_steps, len(plan.evaluate_at))
    assert (train.tokens, validation.tokens) == (sum(rows.lengths), sum(validation_rows.lengths))
    if packing:
        seen = sum(rows.lengths[row] for step in plan.iterate_steps(1) for row in step.rows)
        assert quote.billed_tokens == seen + len(plan.evaluate_at) * sum(validation_rows.lengths)
