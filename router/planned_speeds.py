"""What a plan knows of nodes and links, by name. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from helix_mq.ids import ROUTER, NodeId
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode

WIDE = float("inf")
"""Tokens/s of a link that nobody has measured: never the bottleneck."""


class PlannedSpeeds:
    """A problem's nodes by name and its links by their ends: made once, looked into often."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.nodes: Mapping[NodeId, ProblemNode] = {n.name: n for n in problem.nodes}
        self._links: dict[NodeId, dict[NodeId, ProblemLink]] = {}
        for link in problem.links:
            if link.bytes_per_s > 0:
                self._links.setdefault(link.src, {})[link.dst] = link

    def links_from(self, source: NodeId) -> Mapping[NodeId, ProblemLink]:
        """Links with bandwidth out of a node, or out of SOURCE, by their other end."""
        return self._links.get(source, {})

    def bytes_per_s(self, ends: tuple[NodeId, NodeId]) -> float:
        """Of the link between these, ROUTER one of them or none; no limit where there is none."""
        source, target = ends
        out = self.links_from(SOURCE if source == ROUTER else source)
        found = out.get(SINK if target == ROUTER else target)
        return found.bytes_per_s if found is not None else WIDE
