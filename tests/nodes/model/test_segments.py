"""Segments cover exactly the layers each row wants, for any mixture of ranges."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helix_mq.layers import LayerRange
from nodes.model.batch import RowSpec
from nodes.model.segments import split

RANGES = st.tuples(st.integers(0, 9), st.integers(1, 9)).map(lambda t: LayerRange(t[0], sum(t)))
ROWS = st.lists(st.tuples(RANGES, st.integers(1, 3)), min_size=1, max_size=9)


@given(ROWS)
def test_every_row_runs_each_of_its_layers_once_in_order(
    drawn: list[tuple[LayerRange, int]],
) -> None:
    rows = [RowSpec(i, 0, count, layers) for i, (layers, count) in enumerate(drawn)]
    segments = split(rows)
    for i, row in enumerate(rows):
        run = [n for s in segments if i in s.rows for n in range(s.layers.first, s.layers.end)]
        assert run == list(range(row.layers.first, row.layers.end))
    for segment in segments:
        # Leaving then cuts off the end of the tensor, and joining appends where ends are equal.
        order = [(-rows[i].layers.end, rows[i].layers.first) for i in segment.rows]
        assert order == sorted(order)
        assert len(set(segment.rows)) == len(segment.rows)


def test_rows_with_one_range_keep_their_order_with_decodes_first() -> None:
    layers = LayerRange(2, 5)
    rows = [RowSpec(i, 0, count, layers) for i, count in enumerate([1, 7, 1, 2, 1])]
    (segment,) = split(rows)
    assert segment.layers == layers
    assert segment.rows == (0, 2, 4, 1, 3)


def test_layers_that_nobody_wants_are_skipped() -> None:
    rows = [RowSpec("a", 0, 1, LayerRange(0, 2)), RowSpec("b", 0, 1, LayerRange(5, 6))]
    assert [s.layers for s in split(rows)] == [LayerRange(0, 2), LayerRange(5, 6)]
