"""From what the live nodes hold to the graph that routes are chosen on, and the flow over it. Pure.

The graph is `solver.flow`'s: Helix's (ASPLOS '25, section 4.2), with partial inference. Nodes that
a plan knows have its speeds, and links among them and to the router are the plan's; a node that it
does not know passes `layer_tokens_per_s / k` tokens/s with k layers, as it has measured, over links
that count as wide. The flow is computed by scipy's Dinic in whole multiples of a 2^-30th of all
nodes' rates together: exact enough for shares, and some 200 times faster than exact arithmetic,
which would hold up the router's loop for seconds in large clusters. Of flows that are as large
the one with the shortest ways is taken (router.quicker_flow).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import LayerRange, Placement
from router.bottleneck import Cut
from router.planned_speeds import WIDE, PlannedSpeeds
from router.quicker_flow import quicker
from router.routes import FlowWeights
from solver.problem import SINK, SOURCE, ProblemLink, ProblemNode

_UNITS = 2**30
_WIDE_UNITS = 3 * 2**29
"""More than all nodes together pass, so that what is wide is in no cut, and less than an int32."""
_LEAST_TOKENS_PER_S = 1e-3
"""A node that measured next to nothing may still be the only one with its layers."""


@dataclass(frozen=True, slots=True)
class LiveNode:
    """A ready node as the flow sees it."""

    name: NodeId
    layers: LayerRange
    layer_tokens_per_s: float
    tokens_per_s: float | None = None
    """With these layers, by its own measurements; they come before a plan's."""
    slowdown: float = 1.0
    """Its steps take so many times as long as they should."""


@dataclass(frozen=True, slots=True)
class LinkMeasured:
    """`bytes_per_s` 0: nothing is known that says more than the plan. `latency_s` likewise."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class MeasuredLinks:
    """Links by their ends, ROUTER one of them or none; bytes per token to or from the router, and
    between nodes."""

    links: Mapping[tuple[NodeId, NodeId], LinkMeasured]
    token_bytes: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class LiveFlow:
    """`rates`: tokens/s that each node could pass, with work and links enough. `capacities`: that
    the links with flow could, those that nobody has measured left out; ROUTER may be an end."""

    tokens_per_s: float
    weights: FlowWeights
    rates: Mapping[NodeId, float] = field(default_factory=dict)
    capacities: Mapping[tuple[NodeId, NodeId], float] = field(default_factory=dict)
    cut: Cut = Cut()

    def by_node(self) -> dict[NodeId, float]:
        """Tokens/s of the flow that pass each node; those that none passes are absent."""
        passing: dict[NodeId, float] = {}
        for out in self.weights.edges.values():
            for node, rate in out:
                passing[node] = passing.get(node, 0.0) + rate
        return passing


def live_flow(
    num_layers: int,
    nodes: Sequence[LiveNode],
    planned: PlannedSpeeds | None = None,
    closed: Collection[tuple[NodeId, NodeId]] = frozenset(),
    measured: MeasuredLinks | None = None,
) -> LiveFlow:
    """Max flow over the live nodes; zero, with no edges, when they do not cover the model.

    `closed`: links that are not to be used, ROUTER their first end or their second.
    """
    placement = Placement(num_layers, {n.name: n.layers for n in nodes})
    ends = {n.name: n.layers.end for n in nodes}
    if placement.missing():
        return LiveFlow(0.0, FlowWeights(num_layers, {}, ends))
    return _Graph(num_layers, nodes, planned, closed, measured).solve()


@dataclass(frozen=True, slots=True)
class _Link:
    """Tokens/s that a link passes, and the seconds that one token takes over it."""

    rate: float
    hop_s: float


_WIDE_LINK = _Link(WIDE, 0.0)


class _Graph:
    """Each node is `in -> start -> end -> out`: NIC, engine, NIC. Ids enter at start, leave at end.

    Vertices: 0 is the source, 1 the sink, 2 + 4i to 5 + 4i those of node i, in the order of names.
    """

    def __init__(
        self,
        num_layers: int,
        nodes: Sequence[LiveNode],
        planned: PlannedSpeeds | None,
        closed: Collection[tuple[NodeId, NodeId]],
        measured: MeasuredLinks | None,
    ) -> None:
        self._num_layers = num_layers
        self._measured = measured
        self._closed = closed
        self._nodes = sorted(nodes, key=lambda n: n.name)
        self._planned = planned
        self._rates = [self._rate(node) for node in self._nodes]
        self._rate_of = {n.name: r for n, r in zip(self._nodes, self._rates, strict=True)}
        self._tails: list[int] = []
        self._heads: list[int] = []
        self._caps: list[float] = []
        self._hops_s: list[float] = []
        self._links: dict[tuple[NodeId, NodeId], _Link] = {}
        self._next: dict[NodeId, list[NodeId]] = {}

    def solve(self) -> LiveFlow:
        self._add_nodes()
        self._add_links()
        names = {n.name: n.layers.end for n in self._nodes}
        flows, cut = self._flows()
        edges: dict[NodeId, list[tuple[NodeId, float]]] = {}
        hop_s: dict[tuple[NodeId, NodeId], float] = {}
        link_s: dict[tuple[NodeId, NodeId], float] = {}
        back_s = self._backs_s()
        for (source, target), rate in flows.items():
            if target != SINK:
                edges.setdefault(source, []).append((target, rate))
                hop = self._links.get((source, target), _WIDE_LINK)
                link_s[source, target] = hop.hop_s + back_s.get(target, 0.0)
                hop_s[source, target] = link_s[source, target] + 1 / self._rate_of[target]
        weights = FlowWeights(
            num_layers=self._num_layers,
            edges={source: tuple(sorted(out)) for source, out in sorted(edges.items())},
            end_of=names,
            transitions=self._transitions(),
            hop_s=hop_s,
            link_s=link_s,
        )
        total = sum(rate for (at, _), rate in sorted(flows.items()) if at == ROUTER)
        return LiveFlow(total, weights, self._rate_of, self._capacities(flows), cut)

    # -- the parts --------------------------------------------------------------

    def _known(self, name: NodeId) -> ProblemNode | None:
        return self._planned.nodes.get(name) if self._planned is not None else None

    def _rate(self, node: LiveNode) -> float:
        known, held = self._known(node.name), len(node.layers)
        if node.tokens_per_s is not None:
            rate = max(node.tokens_per_s, _LEAST_TOKENS_PER_S)
        elif known is not None and held <= len(known.tokens_per_s_by_layers):
            rate = max(known.tokens_per_s(held), _LEAST_TOKENS_PER_S)
        else:
            rate = max(node.layer_tokens_per_s, _LEAST_TOKENS_PER_S) / held
        return max(rate / node.slowdown, _LEAST_TOKENS_PER_S / held)

    def _add_nodes(self) -> None:
        for i, node in enumerate(self._nodes):
            known = self._known(node.name)
            nic_in = nic_out = WIDE
            if known is not None and self._planned is not None:
                size = self._planned.problem.activation_bytes
                nic_in, nic_out = known.nic_in_bytes_per_s / size, known.nic_out_bytes_per_s / size
            for step, rate in enumerate((nic_in, self._rates[i], nic_out)):
                self._add(2 + 4 * i + step, 3 + 4 * i + step, rate)

    def _add_links(self) -> None:
        """Valid transitions only: among a thousand nodes they are a small part of all pairs."""
        by_range: dict[LayerRange, list[int]] = {}
        for i, node in enumerate(self._nodes):
            by_range.setdefault(node.layers, []).append(i)
        after = {
            held: [i for r in by_range if r.first <= held.end < r.end for i in by_range[r]]
            for held in by_range
        }
        first = [i for i, n in enumerate(self._nodes) if n.layers.first == 0]
        for j, link in self._links_out(ROUTER, first):
            self._add(0, 3 + 4 * j, link.rate, link.hop_s)
        for i, node in enumerate(self._nodes):
            if node.layers.end == self._num_layers:
                back = self._back(node.name)
                if back is not None:
                    self._add(4 + 4 * i, 1, back.rate, back.hop_s)
            for j, link in self._links_out(node.name, after[node.layers]):
                self._add(5 + 4 * i, 2 + 4 * j, link.rate, link.hop_s)

    def _links_out(self, source: NodeId, targets: Sequence[int]) -> Iterator[tuple[int, _Link]]:
        """Those of the targets that there is a link to, and the link."""
        next_nodes = self._next.setdefault(source, [])
        planned = self._planned
        if self._closed:
            targets = [j for j in targets if (source, self._nodes[j].name) not in self._closed]
        source_known = source == ROUTER or self._known(source) is not None
        if planned is None or not source_known:
            next_nodes += [self._nodes[j].name for j in targets]
            yield from ((j, self._unplanned(source, self._nodes[j].name)) for j in targets)
            return
        problem = planned.problem
        links = planned.links_from(SOURCE if source == ROUTER else source)
        for j in targets:
            name = self._nodes[j].name
            known = planned.nodes.get(name)
            if known is None:
                link = self._unplanned(source, name)
            else:
                found = links.get(name)
                if found is None:
                    continue
                size = problem.token_bytes if source == ROUTER else problem.activation_bytes
                bytes_per_s, latency_s = self._replaced(source, name, found)
                rate = bytes_per_s / size
                if source == ROUTER:
                    rate = min(rate, known.nic_in_bytes_per_s / size)
                link = _Link(rate, latency_s + size / bytes_per_s)
                self._links[source, name] = link
            next_nodes.append(name)
            yield j, link

    def _back(self, name: NodeId) -> _Link | None:
        """A last hop's link to the router."""
        if (name, ROUTER) in self._closed:
            return None
        known = self._known(name)
        if known is None or self._planned is None:
            return self._unplanned(name, ROUTER)
        found = self._planned.links_from(name).get(SINK)
        if found is None:
            return None
        size = self._planned.problem.token_bytes
        bytes_per_s, latency_s = self._replaced(name, ROUTER, found)
        rate = min(bytes_per_s, known.nic_out_bytes_per_s) / size
        link = _Link(rate, latency_s + size / bytes_per_s)
        self._links[name, SINK] = link
        return link

    def _replaced(
        self, source: NodeId, target: NodeId, planned: ProblemLink
    ) -> tuple[float, float]:
        """Bytes/s and seconds of a planned link, measured where that is known."""
        found = self._measured.links.get((source, target)) if self._measured is not None else None
        if found is None:
            return planned.bytes_per_s, planned.latency_s
        return found.bytes_per_s or planned.bytes_per_s, found.latency_s or planned.latency_s

    def _unplanned(self, source: NodeId, target: NodeId) -> _Link:
        """A link that no plan knows: as measured, else wide."""
        measured = self._measured
        found = measured.links.get((source, target)) if measured is not None else None
        if measured is None or found is None:
            return _WIDE_LINK
        ends = ROUTER in (source, target)
        size = measured.token_bytes if ends else measured.activation_bytes
        rate = found.bytes_per_s / size if found.bytes_per_s else WIDE
        link = _Link(rate, found.latency_s + 1 / rate)
        self._links[source, SINK if target == ROUTER else target] = link
        return link

    def _add(self, tail: int, head: int, rate: float, hop_s: float = 0.0) -> None:
        self._tails.append(tail)
        self._heads.append(head)
        self._caps.append(rate)
        self._hops_s.append(hop_s)

    # -- the answer -------------------------------------------------------------

    def _flows(self) -> tuple[dict[tuple[NodeId, NodeId], float], Cut]:
        """Tokens/s over each link that carries some, ROUTER its first end or SINK its second; and
        what caps them."""
        scale = _UNITS / sum(self._rates)
        units = np.clip(np.array(self._caps) * scale, 0.0, float(_WIDE_UNITS))
        # What passes anything passes a unit, or one slow node would end all serving.
        whole = np.where(units > 0, np.maximum(np.rint(units), 1), 0).astype(np.int32)
        size = 2 + 4 * len(self._nodes)
        graph = csr_array((whole, (self._tails, self._heads)), shape=(size, size))
        found = maximum_flow(graph, 0, 1, method="dinic")
        better = quicker(self._tails, self._heads, whole, self._hops_s, int(found.flow_value))
        solved = (found.flow if better is None else better).tocoo()
        positive = solved.data > 0
        flows: dict[tuple[NodeId, NodeId], float] = {}
        for tail, head, units_over in zip(
            solved.row[positive].tolist(),
            solved.col[positive].tolist(),
            solved.data[positive].tolist(),
            strict=True,
        ):
            if (ends := self._ends(tail, head)) is not None:
                flows[ends] = units_over / scale
        return flows, self._cut(graph - found.flow)

    def _ends(self, tail: int, head: int) -> tuple[NodeId, NodeId] | None:
        """The link that an edge stands for; None for those inside a node."""
        if tail == 0:
            return (ROUTER, self._name(head))
        if head == 1:
            return (self._name(tail), SINK)
        if (tail - 2) // 4 != (head - 2) // 4:
            return (self._name(tail), self._name(head))
        return None

    def _cut(self, residual: csr_array) -> Cut:
        """The edges out of what the source still reaches."""
        residual.eliminate_zeros()
        reached = np.zeros(2 + 4 * len(self._nodes), dtype=bool)
        reached[breadth_first_order(residual, 0, return_predecessors=False)] = True
        tails, heads = np.array(self._tails), np.array(self._heads)
        inside: tuple[list[NodeId], list[NodeId], list[NodeId]] = ([], [], [])
        links: list[tuple[NodeId, NodeId]] = []
        for at in np.flatnonzero(reached[tails] & ~reached[heads]).tolist():
            tail, head = self._tails[at], self._heads[at]
            if self._caps[at] <= 0:
                continue
            ends = self._ends(tail, head)
            if ends is None:
                inside[(tail - 2) % 4].append(self._name(tail))
            else:
                links.append((ends[0], ROUTER if ends[1] == SINK else ends[1]))
        nics_in, engines, nics_out = (tuple(sorted(names)) for names in inside)
        return Cut(engines, nics_in, nics_out, tuple(sorted(links)))

    def _capacities(
        self, flows: Mapping[tuple[NodeId, NodeId], float]
    ) -> dict[tuple[NodeId, NodeId], float]:
        known = {}
        for source, target in sorted(flows):
            rate = self._links.get((source, target), _WIDE_LINK).rate
            if rate < WIDE:
                known[source, ROUTER if target == SINK else target] = rate
        return known

    def _name(self, vertex: int) -> NodeId:
        return self._nodes[(vertex - 2) // 4].name

    def _transitions(self) -> dict[NodeId, tuple[NodeId, ...]]:
        """Next nodes that lead on to the last layer, by links that are there."""
        leads_on: set[NodeId] = set()
        kept: dict[NodeId, tuple[NodeId, ...]] = {}
        for node in sorted(self._nodes, key=lambda n: (-n.layers.end, n.name)):
            if node.layers.end == self._num_layers:
                if self._back(node.name) is not None:
                    leads_on.add(node.name)
                continue
            kept[node.name] = tuple(sorted(n for n in self._next[node.name] if n in leads_on))
            if kept[node.name]:
                leads_on.add(node.name)
        kept[ROUTER] = tuple(sorted(n for n in self._next[ROUTER] if n in leads_on))
        return kept

    def _backs_s(self) -> dict[NodeId, float]:
        """Seconds from each last node to a first one: by the router, or straight where that is
        sooner, as tokens then go (router.token_return). A node that is both feeds itself."""
        firsts = {n.name for n in self._nodes if n.layers.first == 0}
        lasts = [n.name for n in self._nodes if n.layers.end == self._num_layers]
        out_s = min(self._links.get((ROUTER, f), _WIDE_LINK).hop_s for f in firsts)
        return {
            last: 0.0
            if last in firsts
            else min(
                self._links.get((last, SINK), _WIDE_LINK).hop_s + out_s,
                *(self._straight_s(last, first) for first in firsts),
            )
            for last in lasts
        }

    def _straight_s(self, last: NodeId, first: NodeId) -> float:
        """Of a token from a last node to a first one; inf where nothing is known of such a link."""
        if (last, first) in self._closed:
            return WIDE
        found = self._measured.links.get((last, first)) if self._measured is not None else None
        if found is not None and found.latency_s:
            return found.latency_s
        planned = self._planned.links_from(last).get(first) if self._planned is not None else None
        return planned.latency_s if planned is not None else WIDE
