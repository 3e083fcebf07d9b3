"""From what the live nodes hold and measure to the weights that routes are chosen by.

The max flow itself is `solver.flow`'s; this module only puts the live cluster into its terms. A
node that holds k layers and runs `layer_tokens_per_s` tokens of one layer per second passes
`layer_tokens_per_s / k` tokens/s. Links count as wide here until they are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import LayerRange, Placement
from router.routes import FlowWeights
from solver.flow import max_flow
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode

WIDE_BYTES_PER_S = 1e12
"""An unmeasured link: never the bottleneck."""


@dataclass(frozen=True, slots=True)
class LiveNode:
    """A ready node as the flow sees it."""

    name: NodeId
    layers: LayerRange
    layer_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class LiveFlow:
    tokens_per_s: float
    weights: FlowWeights


def live_flow(num_layers: int, activation_bytes: int, nodes: Sequence[LiveNode]) -> LiveFlow:
    """Max flow over the live nodes; zero, with no edges, when they do not cover the model."""
    placement = Placement(num_layers, {n.name: n.layers for n in nodes})
    ends = {n.name: n.layers.end for n in nodes}
    if placement.missing():
        return LiveFlow(0.0, FlowWeights(num_layers, {}, ends))
    solution = max_flow(_problem(num_layers, activation_bytes, nodes), placement)
    edges: dict[NodeId, list[tuple[NodeId, float]]] = {}
    for edge in solution.edges:
        if edge.tokens_per_s > 0 and edge.dst != SINK:
            source = ROUTER if edge.src == SOURCE else NodeId(edge.src)
            edges.setdefault(source, []).append((NodeId(edge.dst), edge.tokens_per_s))
    weights = FlowWeights(num_layers, {s: tuple(sorted(e)) for s, e in edges.items()}, ends)
    return LiveFlow(solution.tokens_per_s, weights)


def _problem(num_layers: int, activation_bytes: int, nodes: Sequence[LiveNode]) -> Problem:
    problem_nodes = tuple(
        ProblemNode(
            name=n.name,
            type_name="live",
            region="",
            max_layers=len(n.layers),
            tokens_per_s_by_layers=tuple(
                max(n.layer_tokens_per_s, 1e-3) / k for k in range(1, len(n.layers) + 1)
            ),
            kv_tokens_by_layers=(),
            nic_in_bytes_per_s=WIDE_BYTES_PER_S,
            nic_out_bytes_per_s=WIDE_BYTES_PER_S,
            vram_bytes=0,
        )
        for n in nodes
    )
    names = [n.name for n in nodes]
    links = [ProblemLink(SOURCE, b, WIDE_BYTES_PER_S, 0.0) for b in names]
    links += [ProblemLink(a, SINK, WIDE_BYTES_PER_S, 0.0) for a in names]
    links += [ProblemLink(a, b, WIDE_BYTES_PER_S, 0.0) for a in names for b in names if a != b]
    return Problem(
        name="live",
        num_layers=num_layers,
        token_bytes=4,
        activation_bytes=activation_bytes,
        nodes=problem_nodes,
        links=tuple(links),
    )
