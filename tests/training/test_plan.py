"""Which rows go into which step, and where evaluations and checkpoints fall."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from luthier.training.plan import make_plan, spread
from training_runs import HYPERPARAMETERS


def _plan(lengths, **changes):
    return make_plan(lengths, msgspec.structs.replace(HYPERPARAMETERS, **changes))


@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    n_epochs=st.integers(1, 3),
    packing=st.booleans(),
)
def test_plan_when_iterated_sees_each_row_once_an_epoch(lengths, batch_size, accumulation, n_epochs, packing):
    plan = _plan(
        lengths,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        n_epochs=n_epochs,
        packing=packing,
    )
    steps = list(plan.iterate_steps(seed=1))
    assert [step.number for step in steps] == list(range(1, plan.total_steps + 1))
    for epoch in range(1, n_epochs + 1):
        mine = [step for step in steps if step.epoch == epoch]
        assert sorted(row for step in mine for row in step.rows) == list(range(len(lengths)))
        assert [step.ends_epoch for step in mine] == [False] * (len(mine) - 1) + [True]


def test_plan_when_packs_do_not_divide_takes_a_smaller_last_step():
    plan = _plan([10] * 7, packing=False, batch_size=2, gradient_accumulation_steps=2, n_epochs=2)
    assert (plan.steps_per_epoch, plan.total_steps) == (2, 4)
    assert [len(step.rows) for step in plan.iterate_steps(seed=3)] == [4, 3, 4, 3]


def test_plan_when_packing_fills_sequences():
    plan = _plan([32] * 8, max_seq_length=64, batch_size=1)
    assert plan.total_steps == 4
    assert _plan([32] * 8, max_seq_length=64, batch_size=1, packing=False).total_steps == 8


def test_order_when_seed_or_epoch_differs_differs_and_repeats_with_the_seed():
    plan = _plan([10] * 20, packing=False, n_epochs=2, batch_size=20)
    first, second = (step.rows for step in plan.iterate_steps(seed=1))
    assert first != second
    assert [first, second] == [step.rows for step in plan.iterate_steps(seed=1)]
    assert first != next(plan.iterate_steps(seed=2)).rows


def test_spread_ends_on_the_last_step_and_is_even():
    assert spread(3, 9) == {3, 6, 9}
    assert spread(2, 5) == {2, 5}
    assert spread(1, 7) == {7}
    assert spread(0, 7) == set()


def test_spread_when_more_than_steps_is_every_step():
    assert spread(100, 3) == {1, 2, 3}


def test_checkpoints_when_one_is_asked_for_is_the_output_itself():
    assert _plan([10] * 12, packing=False, batch_size=2, n_checkpoints=1).save_at == set()
    assert _plan([10] * 12, packing=False, batch_size=2, n_checkpoints=3).save_at == {2, 4}
