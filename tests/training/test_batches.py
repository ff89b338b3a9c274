"""From rows to tensors."""

import pytest
import torch

from luthier.training.batches import Rows
from training_runs import write_tokens


@pytest.fixture
def make_rows_of(tmp_path):
    return lambda rows: Rows(write_tokens(tmp_path / "x.tokens", rows), torch.device("cpu"))


def test_cut_when_rows_fit_joins_them_without_padding(make_rows_of):
    rows = make_rows_of([([5, 6, 7, 8], b"\0\0\1\1"), ([9, 10, 11], b"\0\1\1")])
    (batch,) = rows.cut([0, 1], max_tokens=100)
    # The last token of a row predicts nothing, so it is not computed.
    assert batch.input_ids.tolist() == [5, 6, 7, 9, 10]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.segments == [3, 2]
    assert batch.positions.tolist() == [1, 2, 3, 4]
    assert batch.targets.tolist() == [7, 8, 10, 11]


def test_cut_when_tokens_behind_the_last_target_leaves_them_out(make_rows_of):
    (batch,) = make_rows_of([([5, 6, 7, 8, 9], b"\0\1\0\0\0")]).cut([0], max_tokens=100)
    assert batch.input_ids.tolist() == [5]
    assert batch.targets.tolist() == [6]


def test_cut_when_the_first_token_is_trained_has_nothing_to_predict_it_from(make_rows_of):
    (batch,) = make_rows_of([([5, 6], b"\1\1")]).cut([0], max_tokens=100)
    assert batch.targets.tolist() == [6]
    (batch,) = make_rows_of([([5, 6], b"\1\0")]).cut([0], max_tokens=100)
    assert batch.targets.tolist() == []


def test_cut_when_rows_exceed_the_limit_keeps_their_order_and_rows_whole(make_rows_of):
    rows = make_rows_of([([3] * length, b"\1" * length) for length in (4, 4, 30, 2, 2)])
    batches = list(rows.cut([4, 2, 0, 1, 3], max_tokens=7))
    assert [batch.segments for batch in batches] == [[1], [29], [3, 3, 1]]


def test_lengths_are_those_that_are_billed(make_rows_of):
    assert make_rows_of([([3] * 4, b"\1\0\0\0"), ([3] * 2, b"\1\1")]).lengths == [4, 2]
