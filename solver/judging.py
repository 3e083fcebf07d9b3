"""Ranking placements by short simulations: what is asked of a simulator, and where one is found.

The planner stands below the simulator and cannot import it; a package that can simulate announces
itself under the entry point group GROUP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol, cast

from helix_mq.layers import Placement
from solver.objective import ServingModel
from solver.problem import Problem

GROUP = "helix_mq.simulators"
TRIALS = 6
"""Candidates that are tried out at most, the most promising by the estimate first."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a placement served in a simulation that keeps it full: medians in seconds."""

    decode_tokens_per_s: float
    itl_p50_s: float
    ttft_p50_s: float
    requests_in_flight: float


class Simulate(Protocol):
    def __call__(
        self,
        problem: Problem,
        placement: Placement,
        model: ServingModel,
        stop: Callable[[], bool],
    ) -> Trial | None:
        """A short run; None if `stop`, asked often, said so before its end.

        ConfigError where the problem lacks what a simulation needs.
        """
        ...


def find_simulator() -> Simulate | None:
    """The installed simulator, if there is one."""
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        return cast(Simulate, entry.load())
    return None
