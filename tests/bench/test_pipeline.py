"""What a bench of one node and three says of its turns."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.pipeline import Turn, rates_of


def turns(one: list[float], three: list[float], streams: int) -> list[Turn]:
    """As they come: now one goes first, now the other."""
    found = []
    for number, (a, b) in enumerate(zip(one, three, strict=True)):
        pair = [Turn(0, number, streams, "one", a), Turn(0, number, streams, "three", b)]
        found += pair if number % 2 == 0 else pair[::-1]
    return found


def test_ratios_are_of_each_turn_and_not_of_medians() -> None:
    """A machine that is half as fast in some turns says nothing about the ratio."""
    some = turns([100.0, 50.0, 100.0, 40.0], [80.0, 40.0, 80.0, 32.0], 1)
    others = turns([10.0, 20.0, 30.0], [10.0, 10.0, 27.0], 8)
    first, second = rates_of([*some, *others], [1, 8])
    assert first["three_over_one"] == 0.8
    assert first["three_over_one_quartiles"] == [0.8, 0.8]
    assert (first["one_tokens_per_s"], first["three_tokens_per_s"]) == (75.0, 60.0)
    assert (second["streams"], second["three_over_one"]) == (8, 0.9)
    assert second["three_over_one_quartiles"] == [0.5, 1.0]


def test_one_turn_is_its_own_spread() -> None:
    (found,) = rates_of(turns([50.0], [45.0], 1), [1])
    assert found["three_over_one_quartiles"] == [0.9, 0.9]


@pytest.mark.parametrize("driver", ["bench.pipeline", "bench.overload_run", "bench.chaos.run"])
def test_who_drives_a_cluster_loads_no_torch(driver: str) -> None:
    """It shares the cores that are measured, and starts two seconds sooner."""
    code = f"import sys, {driver}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
