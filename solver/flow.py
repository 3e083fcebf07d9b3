"""The max flow of a placement: tokens per second, the links they take, and what limits them.

The graph is Helix's (ASPLOS '25, section 4.2): source -> ... -> sink, each node split into
`in -> start -> end -> out` with its NICs' and its engine's rates as capacities. A link from i to j
is usable where j can go on from i's last layer: first_j <= end_i < end_j with partial inference,
first_j = end_i without. Sorted, whole-number arithmetic: the same input gives the same flow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.problem import SINK, SOURCE, Problem, ProblemError, ProblemLink, ProblemNode

if TYPE_CHECKING:
    import networkx as nx

UNITS_PER_TOKEN = 2**30
"""Flow is computed in whole multiples of 2^-30 tokens/s: no rounding can leave flow behind, and
the result is within 1e-9 tokens/s per edge of the cut."""


class CutKind(Enum):
    """What sort of thing limits the flow."""

    ENGINE = "engine"
    NIC_IN = "nic_in"
    NIC_OUT = "nic_out"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class CutEdge:
    """One member of the min cut. `src` = `dst` for a node's own engine or NIC.

    A link from or to the router counts with the node's NIC behind it, whichever is slower.
    """

    kind: CutKind
    src: NodeId
    dst: NodeId
    capacity_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class FlowEdge:
    """A usable link with the flow assigned to it."""

    src: NodeId
    dst: NodeId
    tokens_per_s: float
    capacity_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class FlowSolution:
    """`node_flow`: tokens/s through each node that holds layers; `edges`: all that may be used.

    `min_cut` is the cut nearest to the source; its capacities sum to `tokens_per_s`.
    """

    tokens_per_s: float
    node_flow: Mapping[NodeId, float]
    edges: tuple[FlowEdge, ...]
    min_cut: tuple[CutEdge, ...]


def can_follow(before: LayerRange, after: LayerRange, partial_inference: bool) -> bool:
    """True if a request that left `before` at its end can go on in `after`."""
    if partial_inference:
        return after.first <= before.end < after.end
    return after.first == before.end


def max_flow(
    problem: Problem, placement: Placement, *, partial_inference: bool = True
) -> FlowSolution:
    """The max flow of `placement` in tokens/s; zero where it does not cover the model.

    Ids from and to the router pass a NIC beside the activations and are counted against it apart:
    they are a few bytes against KiB, and a node may get both (its slice starts at layer 0 and
    overlaps another's end).
    """
    graph = _FlowGraph()
    nodes = [n for n in problem.nodes if n.name in placement.slices]
    for node in sorted(nodes, key=lambda n: n.name):
        if len(placement.slices[node.name]) > len(node.tokens_per_s_by_layers):
            raise ProblemError(
                f"node {node.name} holds {placement.slices[node.name]}, but its table of "
                f"throughputs ends at {len(node.tokens_per_s_by_layers)} layers",
                param="placement",
            )
        graph.add_node(problem, node, len(placement.slices[node.name]))
    links = usable_links(problem, placement, partial_inference)
    for link in links:
        graph.add_link(link, link_capacity(problem, link))
    # Loaded when needed: routers, too, import this module for its types.
    from networkx.algorithms.flow import preflow_push

    residual = preflow_push(graph.graph, graph.source, graph.sink)
    flows: dict[CutEdge, float] = {
        # networkx leaves edges without capacity out of its answer.
        edge: residual[a][b]["flow"] / UNITS_PER_TOKEN if residual.has_edge(a, b) else 0.0
        for (a, b), edge in graph.edges.items()
    }
    edges = tuple(
        FlowEdge(edge.src, edge.dst, flow, edge.capacity_tokens_per_s)
        for edge, flow in flows.items()
        if edge.kind is CutKind.LINK
    )
    node_flow = {e.src: flow for e, flow in flows.items() if e.kind is CutKind.ENGINE}
    cut = graph.min_cut(residual)
    value = math.fsum(edge.capacity_tokens_per_s for edge in cut)
    return FlowSolution(value, node_flow, edges, cut)


def link_bytes(problem: Problem, link: ProblemLink) -> int:
    """Bytes that one token puts on a link: ids to and from the router, activations between."""
    if link.src == SOURCE or link.dst == SINK:
        return problem.token_bytes
    return problem.activation_bytes


def link_capacity(problem: Problem, link: ProblemLink) -> float:
    """Tokens/s that a link passes."""
    return link.bytes_per_s / link_bytes(problem, link)


def usable_links(
    problem: Problem, placement: Placement, partial_inference: bool
) -> list[ProblemLink]:
    """Links along which layers fit and bandwidth is left, sorted by their ends."""
    slices = placement.slices
    last = problem.num_layers
    usable = []
    for link in problem.links:
        if link.bytes_per_s <= 0:
            continue
        before, after = slices.get(link.src), slices.get(link.dst)
        if link.src == SOURCE:
            fits = after is not None and after.first == 0
        elif link.dst == SINK:
            fits = before is not None and before.end == last
        else:
            fits = (
                before is not None
                and after is not None
                and can_follow(before, after, partial_inference)
            )
        if fits:
            usable.append(link)
    return sorted(usable, key=lambda k: (k.src, k.dst))


class _FlowGraph:
    """networkx graph over small integers, whose sets iterate alike in every process."""

    def __init__(self) -> None:
        import networkx as nx

        self.graph: nx.DiGraph[int] = nx.DiGraph()
        self.source, self.sink = 0, 1
        self.edges: dict[tuple[int, int], CutEdge] = {}
        self._entry: dict[NodeId, int] = {}
        self._id_rates: dict[NodeId, tuple[float, float]] = {}
        self.graph.add_nodes_from((self.source, self.sink))

    def add_node(self, problem: Problem, node: ProblemNode, layers: int) -> None:
        at = 2 + 4 * len(self._entry)
        self._entry[node.name] = at
        nic_in, nic_out = node.nic_in_bytes_per_s, node.nic_out_bytes_per_s
        self._id_rates[node.name] = (nic_in / problem.token_bytes, nic_out / problem.token_bytes)
        rates = (
            (CutKind.NIC_IN, nic_in / problem.activation_bytes),
            (CutKind.ENGINE, node.tokens_per_s(layers)),
            (CutKind.NIC_OUT, nic_out / problem.activation_bytes),
        )
        for step, (kind, rate) in enumerate(rates):
            self._add(at + step, at + step + 1, CutEdge(kind, node.name, node.name, rate))

    def add_link(self, link: ProblemLink, rate: float) -> None:
        """Activations go from `out` to `in`; ids enter at `start` and leave at `end`."""
        a = self.source if link.src == SOURCE else self._entry[link.src] + 3
        b = self.sink if link.dst == SINK else self._entry[link.dst]
        if link.src == SOURCE:
            b += 1
            rate = min(rate, self._id_rates[link.dst][0])
        if link.dst == SINK:
            a -= 1
            rate = min(rate, self._id_rates[link.src][1])
        self._add(a, b, CutEdge(CutKind.LINK, link.src, link.dst, rate))

    def _add(self, a: int, b: int, edge: CutEdge) -> None:
        self.edges[a, b] = edge
        self.graph.add_edge(a, b, capacity=math.floor(edge.capacity_tokens_per_s * UNITS_PER_TOKEN))

    def min_cut(self, residual: nx.DiGraph[int]) -> tuple[CutEdge, ...]:
        """The edges that leave what the source still reaches in the residual graph."""
        reached = {self.source}
        frontier = [self.source]
        while frontier:
            at = frontier.pop()
            for to, edge in residual[at].items():
                if to not in reached and edge["flow"] < edge["capacity"]:
                    reached.add(to)
                    frontier.append(to)
        return tuple(
            edge for (a, b), edge in self.edges.items() if a in reached and b not in reached
        )
