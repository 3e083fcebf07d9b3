"""Independent pipelines: `homogeneous`, `separate` by GPU type, and `separate` with leftovers.

Each pipeline covers all layers with nodes of its own; a node is in one pipeline or idle. Baselines
like `solver.heuristics`, from node sizes and speeds only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.heuristics import describe_room
from solver.problem import Problem, ProblemNode
from solver.search_types import TooLittleRoom

Slices = dict[NodeId, LayerRange]


def homogeneous(problem: Problem) -> Placement:
    """Pipelines filled one after the other, strongest types first, each node with all it holds.

    The last pipeline is dropped if it does not reach the last layer.
    """
    nodes = [n for kind in _types_by_strength(problem.nodes) for n in kind]
    slices = _fill(nodes, problem.num_layers)
    if not slices:
        raise TooLittleRoom(
            "homogeneous: no pipeline reaches the last layer",
            describe_room(problem.nodes, problem.num_layers),
        )
    return Placement(problem.num_layers, slices)


def separate(problem: Problem, *, leftovers: bool = False) -> Placement:
    """One or more pipelines per GPU type, the layers split evenly over its nodes.

    How many pipelines a type forms is what gives the most throughput, links aside. With
    `leftovers`, nodes of types that cannot hold the model alone form mixed pipelines as in
    `homogeneous`.
    """
    slices: Slices = {}
    left: list[ProblemNode] = []
    for kind in _types_by_strength(problem.nodes):
        own = _best_even(kind, problem.num_layers)
        slices.update(own)
        left += [n for n in kind if n.name not in own]
    if leftovers:
        slices.update(_fill(left, problem.num_layers))
    if not slices:
        method, more = ("-leftovers", ", nor do the types together") if leftovers else ("", "")
        raise TooLittleRoom(
            f"separate{method}: no GPU type holds the whole model alone{more}",
            describe_room(problem.nodes, problem.num_layers),
        )
    return Placement(problem.num_layers, slices)


def _types_by_strength(nodes: Sequence[ProblemNode]) -> list[list[ProblemNode]]:
    """Usable nodes by type, types by falling (layers held at most x throughput then)."""
    kinds: dict[str, list[ProblemNode]] = {}
    for node in nodes:
        if node.max_layers > 0:
            kinds.setdefault(node.type_name, []).append(node)

    def strength(name: str) -> tuple[float, str]:
        return max(n.max_layers * n.tokens_per_s(n.max_layers) for n in kinds[name]), name

    return [
        sorted(kinds[name], key=lambda n: (n.region, n.name))
        for name in sorted(kinds, key=strength, reverse=True)
    ]


def _fill(nodes: Sequence[ProblemNode], num_layers: int) -> Slices:
    """Complete pipelines only."""
    done: Slices = {}
    pipeline: Slices = {}
    at = 0
    for node in nodes:
        end = min(at + node.max_layers, num_layers)
        pipeline[node.name] = LayerRange(at, end)
        at = end
        if at == num_layers:
            done |= pipeline
            pipeline, at = {}, 0
    return done


def _best_even(kind: Sequence[ProblemNode], num_layers: int) -> Slices:
    """The number of even pipelines with the most throughput; empty if not even one fits."""
    best: Slices = {}
    most = 0.0
    for count in range(1, len(kind) + 1):
        cuts = [len(kind) * i // count for i in range(count + 1)]
        groups = [kind[a:b] for a, b in pairwise(cuts)]
        pipelines = [_even(group, num_layers) for group in groups]
        if not all(pipelines):
            break
        rates = {n.name: n for n in kind}
        total = sum(
            min(rates[name].tokens_per_s(len(held)) for name, held in pipeline.items())
            for pipeline in pipelines
        )
        if total > most:
            most, best = total, {k: v for pipeline in pipelines for k, v in pipeline.items()}
    return best


def _even(nodes: Sequence[ProblemNode], num_layers: int) -> Slices:
    """Layers dealt out one at a time to nodes with room; then nodes in order along the model."""
    counts = [0] * len(nodes)
    for _ in range(num_layers):
        open_nodes = [i for i, n in enumerate(nodes) if counts[i] < n.max_layers]
        if not open_nodes:
            return {}
        counts[min(open_nodes, key=lambda i: (counts[i], i))] += 1
    slices: Slices = {}
    at = 0
    for node, count in zip(nodes, counts, strict=True):
        if count:
            slices[node.name] = LayerRange(at, at + count)
            at += count
    return slices
