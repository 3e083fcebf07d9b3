"""What steps should take, against steps that a real slice takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.layers import LayerRange
from helix_mq.step_budget import StepProfile
from nodes.step_expectation import StepExpectation

PROFILE = StepProfile(1e-3, ((16.0, 2e-3), (64.0, 5e-3)))
DECODES = ((1.0, 1.1e-3), (4.0, 1.4e-3), (16.0, 2.6e-3))
EXPECTED = StepExpectation(4, PROFILE, DECODES)


@dataclass(frozen=True)
class FakeRow:
    count: int
    is_decode: bool
    layers: LayerRange = LayerRange(0, 4)


def decodes(count: int) -> list[FakeRow]:
    return [FakeRow(1, True)] * count


def test_measured_steps_take_what_was_measured() -> None:
    assert EXPECTED.seconds([]) == 0
    assert EXPECTED.seconds(decodes(1)) == pytest.approx(1.1e-3)
    assert EXPECTED.seconds(decodes(4)) == pytest.approx(1.4e-3)
    assert EXPECTED.seconds(decodes(10)) == pytest.approx(2.0e-3)
    assert EXPECTED.seconds(decodes(28)) == pytest.approx(3.8e-3)
    assert EXPECTED.seconds([FakeRow(16, False)]) == pytest.approx(2e-3)
    with_drafts = FakeRow(10, True)
    assert EXPECTED.seconds([with_drafts]) == pytest.approx(2.0e-3)


def test_a_step_with_both_makes_one_pass() -> None:
    both = EXPECTED.seconds([*decodes(4), FakeRow(16, False)])
    assert both == pytest.approx(2e-3 + 1.4e-3 - 1e-3)


def test_a_part_of_the_slice_is_that_part_of_a_row() -> None:
    half = [FakeRow(32, False, LayerRange(2, 4))]
    assert EXPECTED.seconds(half) == EXPECTED.seconds([FakeRow(16, False)])


ROWS = st.lists(
    st.builds(FakeRow, st.integers(1, 200), st.just(False)) | st.just(FakeRow(1, True)), max_size=60
)


@given(ROWS, ROWS)
def test_more_rows_never_take_less(some: list[FakeRow], more: list[FakeRow]) -> None:
    assert EXPECTED.seconds([*some, *more]) >= EXPECTED.seconds(some) - 1e-12


async def test_a_real_slice_reports_what_its_steps_should_have_taken(tiny_folder: Path) -> None:
    from tests.cluster import cluster, greedy

    async with cluster(tiny_folder, {"a": "0:6"}) as c:
        for length in (1, 30, 90):
            await c.run(greedy(tuple(range(3, 3 + length)), 16))
        worker = c.daemons["a"].workers[0]
        statistics = worker.statistics()
        assert statistics.expected_s > 0
        # A machine under test is slower than it was when it measured, never a hundred times.
        assert 0.1 < statistics.step_s / statistics.expected_s < 100
