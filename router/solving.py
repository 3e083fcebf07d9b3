"""A max flow to be computed, as plain data: by whom and where is for its holder to choose. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from router.flows import LiveFlow, LiveNode, MeasuredLinks, live_flow
from router.link_watch import Edge
from router.planned_speeds import PlannedSpeeds


@dataclass(frozen=True, slots=True)
class FlowProblem:
    """Nothing in here changes any more, so another thread may solve it."""

    num_layers: int
    nodes: tuple[LiveNode, ...]
    planned: PlannedSpeeds | None
    closed: frozenset[Edge]
    measured: MeasuredLinks | None

    def solve(self) -> LiveFlow:
        return live_flow(self.num_layers, self.nodes, self.planned, self.closed, self.measured)
