"""The learning rate at each step, against values worked out by hand."""

import pytest

from luthier.protocol.spec import Schedule
from luthier.training.schedule import get_factor


def _factors(schedule, total_steps):
    return [get_factor(schedule, step, total_steps) for step in range(1, total_steps + 1)]


def test_linear_falls_in_equal_parts():
    assert _factors(Schedule(kind="linear"), 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_cosine_falls_along_half_a_wave():
    assert _factors(Schedule(kind="cosine"), 4) == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_cosine_with_one_whole_cycle_rises_again():
    assert _factors(Schedule(kind="cosine", num_cycles=1.0), 4) == pytest.approx([1.0, 0.5, 0.0, 0.5], abs=1e-9)


def test_floor_is_a_share_of_the_peak():
    assert _factors(Schedule(kind="linear", min_lr_ratio=0.5), 2) == pytest.approx([1.0, 0.75])


def test_warmup_rises_from_the_first_step_to_the_peak():
    factors = _factors(Schedule(kind="linear", warmup_ratio=0.25), 8)
    assert factors == pytest.approx([1 / 3, 2 / 3, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_warmup_when_it_is_the_whole_job_never_divides_by_zero():
    assert _factors(Schedule(warmup_ratio=1.0), 3) == pytest.approx([0.25, 0.5, 0.75])
