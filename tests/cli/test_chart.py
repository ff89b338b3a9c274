from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from luthier.cli import chart

SIZES = {"width": 60, "height": 12}
points = st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e6, 1e6)), max_size=300)


def test_draw_when_line_falls_then_first_column_is_high_and_last_is_low():
    drawn = chart.draw([(0, 4.0), (100, 1.0)], **SIZES)
    assert drawn is not None
    assert drawn.rows[0][1][0] != " "
    assert drawn.rows[-1][1][-1] != " "
    assert drawn.rows[0][1][-1] == " "
    assert [label.strip() for label, *_ in drawn.rows if label.strip()] == ["4.00", "1.00"]
    assert drawn.ticks.split() == ["0", "100"]


def test_draw_when_odd_height_then_middle_is_labelled_too():
    drawn = chart.draw([(0, 4.0), (100, 1.0)], width=60, height=11)
    assert drawn is not None
    assert [label.strip() for label, *_ in drawn.rows if label.strip()] == ["4.00", "2.50", "1.00"]


def test_draw_when_marks_then_they_stand_over_the_line():
    drawn = chart.draw([(0, 1.0), (10, 1.0)], [(5, 1.0)], **SIZES)
    assert drawn is not None
    marked = [(cells, columns) for _, cells, columns in drawn.rows if columns]
    ((cells, columns),) = marked
    assert [cells[column] for column in columns] == [chart.MARK]


def test_draw_when_loss_is_not_finite_then_those_points_are_left_out():
    drawn = chart.draw([(0, 2.0), (1, math.nan), (2, math.inf), (3, 1.0)], **SIZES)
    assert drawn is not None
    assert drawn.ticks.split() == ["0", "3"]


def test_draw_when_nothing_to_draw_or_no_room_then_none():
    assert chart.draw([], **SIZES) is None
    assert chart.draw([(0, math.nan)], **SIZES) is None
    assert chart.draw([(0, 1.0)], width=10, height=12) is None
    assert chart.draw([(0, 1.0)], width=60, height=3) is None


@given(points, points, st.integers(0, 200), st.integers(0, 60))
def test_draw_when_any_points_and_any_size_then_it_keeps_to_its_size(line, marks, width, height):
    drawn = chart.draw(line, marks, width=width, height=height)
    if drawn is None:
        return
    assert len(drawn.rows) + 2 == height
    assert {len(label) + 2 + len(cells) for label, cells, _ in drawn.rows} == {width}
    assert len(drawn.axis) == width
    assert len(drawn.ticks) <= width
