"""What goes into a search for a placement and what comes out: options, progress, result, failure.

Plain frozen values without behaviour beyond checks; `solver.search.solve` ties them together.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from helix_mq.clock import Clock, SystemClock
from helix_mq.errors import CapacityError, ConfigError
from helix_mq.layers import Placement
from solver.flow import FlowSolution
from solver.judging import Simulate, Trial
from solver.objective import ServingEstimate, ServingModel

Method = Literal[
    "auto",
    "milp",
    "blocks",
    "local",
    "petals",
    "swarm",
    "homogeneous",
    "separate",
    "separate-leftovers",
]
METHODS: tuple[Method, ...] = get_args(Method)
"""`blocks`: stages chosen by column generation, chained over regions; `local`: neighbourhood
search from the best heuristic; `auto`: the best of all that the time allows."""

Objective = Literal["max-flow", "serving"]


class NoPlacement(CapacityError):
    """The method cannot place the model on this cluster; the message says what does not fit."""

    code = "no_placement"


class TooLittleRoom(NoPlacement):
    """`reason` is the message less what the nodes hold, for where that is said once for all."""

    def __init__(self, reason: str, room: str) -> None:
        super().__init__(f"{reason}; {room}")
        self.reason = reason


class SolverMissing(ConfigError):
    """The solver asked for is not installed."""

    code = "solver_missing"


@dataclass(frozen=True, slots=True)
class MilpOptions:
    """How Helix's formulation is built and solved.

    `keep_links`: prune each node's links to at most so many each way, fastest first; None keeps
    all. Links slower than `min_link_bytes_per_s` go too, except the first `keep_links_at_least`.
    `remove_redundant` leaves out the constraints that force an edge on (they never change the
    optimum). `output_dir`: where the .lp, the raw solution and the trace are kept.
    """

    solver: Literal["highs", "scip"] = "highs"
    rel_gap: float = 1e-6
    keep_links: int | None = None
    keep_links_at_least: int = 0
    min_link_bytes_per_s: float = 0.0
    remove_redundant: bool = True
    break_symmetry: bool = True
    output_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.solver not in ("highs", "scip"):
            raise ConfigError(f"solver={self.solver!r}: take highs or scip", param="solver")
        if not (math.isfinite(self.rel_gap) and self.rel_gap >= 0):
            raise ConfigError(f"rel_gap={self.rel_gap} must not be negative", param="rel_gap")
        if self.keep_links is not None and not 1 <= self.keep_links_at_least <= self.keep_links:
            raise ConfigError(
                f"keep_links={self.keep_links} must be at least keep_links_at_least="
                f"{self.keep_links_at_least}, and that at least 1",
                param="keep_links",
            )


@dataclass(frozen=True, slots=True)
class SolveOptions:
    """`time_limit_s` is wall time for the whole call, verification included as far as possible.

    `serving` is needed for objective "serving". `simulate` ranks that objective's best candidates;
    without it the estimate does. `warm_start` is a placement to begin from.
    """

    method: Method = "auto"
    time_limit_s: float = 60.0
    seed: int = 0
    objective: Objective = "max-flow"
    partial_inference: bool = True
    warm_start: Placement | None = None
    serving: ServingModel | None = None
    simulate: Simulate | None = None
    milp: MilpOptions = field(default_factory=MilpOptions)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"method={self.method!r}: take one of {', '.join(METHODS)}", param="method"
            )
        if self.objective not in get_args(Objective):
            raise ConfigError(
                f"objective={self.objective!r}: take max-flow or serving", param="objective"
            )
        if not (math.isfinite(self.time_limit_s) and self.time_limit_s > 0):
            raise ConfigError(
                f"time_limit_s={self.time_limit_s} must be positive", param="time_limit_s"
            )
        if self.objective == "serving" and self.serving is None:
            raise ConfigError(
                "objective=serving needs step times and a workload: give the cluster's tables",
                param="objective",
            )


@dataclass(frozen=True, slots=True)
class Progress:
    """The best so far. `upper_bound_tokens_per_s` is None until one is known."""

    seconds: float
    phase: str
    incumbent_tokens_per_s: float
    upper_bound_tokens_per_s: float | None

    @property
    def gap(self) -> float | None:
        """(bound - incumbent) / incumbent."""
        if self.upper_bound_tokens_per_s is None or self.incumbent_tokens_per_s <= 0:
            return None
        return relative_gap(self.incumbent_tokens_per_s, self.upper_bound_tokens_per_s)


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A verified placement. `gap` = (upper bound - objective) / objective, of the max flow.

    `method` is the one that found it (for `auto`, which of them). `serving` is the estimate for
    the stated workload, where one was given; `trial` what a simulation of it served, where it was
    chosen by one.
    """

    method: str
    placement: Placement
    flow: FlowSolution
    objective_tokens_per_s: float
    upper_bound_tokens_per_s: float
    bound_reason: str
    gap: float
    seconds: float
    proven_optimal: bool
    notes: tuple[str, ...] = ()
    trace: tuple[Progress, ...] = ()
    serving: ServingEstimate | None = None
    trial: Trial | None = None


def relative_gap(objective: float, bound: float) -> float:
    """(bound - objective) / objective, not below 0."""
    return max(0.0, (bound - objective) / objective)


class Budget:
    """Time and the wish to stop, asked by every loop of a search."""

    def __init__(
        self,
        limit_s: float,
        *,
        stop: threading.Event | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._start_s = self._clock.now_s()
        self._end_s = self._start_s + limit_s
        self._stop = stop

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return self._clock.now_s() - self._start_s

    @property
    def left_s(self) -> float:
        """Wall time left; 0 once asked to stop."""
        if self._stop is not None and self._stop.is_set():
            return 0.0
        return max(0.0, self._end_s - self._clock.now_s())

    def over(self) -> bool:
        return self.left_s <= 0.0

    def part(self, seconds: float) -> Budget:
        """A budget of at most `seconds` within this one."""
        return Budget(min(seconds, self.left_s), stop=self._stop, clock=self._clock)


ReportProgress = Callable[[Progress], None]
