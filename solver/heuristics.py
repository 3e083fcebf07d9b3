"""The placements of Petals and Swarm, as published systems choose them: no search, no links.

Both look at node speeds only. They are baselines to compare with and points to start from. Each
returns a placement that covers all layers, or raises TooLittleRoom with what does not fit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement, describe_ranges
from solver.problem import Problem, ProblemNode
from solver.search_types import TooLittleRoom


def petals(problem: Problem, seed: int = 0) -> Placement:
    """Nodes in random order each take their most layers, where the layers are weakest.

    Petals (Borzunov et al. 2023, appendix D): the window whose throughputs, sorted, come first in
    lexicographic order; the earliest on ties.
    """
    order = [n for n in problem.nodes if n.max_layers > 0]
    random.Random(seed).shuffle(order)
    strength = [0.0] * problem.num_layers
    slices: dict[NodeId, LayerRange] = {}
    for node in order:
        width = min(node.max_layers, problem.num_layers)
        windows = range(problem.num_layers - width + 1)
        first = min(windows, key=lambda at: (sorted(strength[at : at + width]), at))
        slices[node.name] = LayerRange(first, first + width)
        for layer in range(first, first + width):
            strength[layer] += node.tokens_per_s(width)
    return _covering(problem, slices, "petals")


def swarm_widths(problem: Problem) -> list[int]:
    """Stage widths to try for Swarm, the published choice first.

    That is the widest equal split of the layers that every node can hold.
    """
    room = [n.max_layers for n in problem.nodes if n.max_layers > 0]
    if not room:
        return []
    divisors = [w for w in range(1, problem.num_layers + 1) if problem.num_layers % w == 0]
    published = [w for w in divisors if w <= min(room)][-1:]
    others = range(1, min(max(room), problem.num_layers) + 1)
    return published + [w for w in others if w not in published]


def swarm(problem: Problem, width: int) -> Placement:
    """Stages of `width` layers; nodes by falling speed each join the weakest stage.

    SWARM (Ryabinin et al. 2023), in the equal-stage form of the published artifact. Where `width`
    does not divide the layers, stages are as equal as can be and none is wider. Nodes too small
    for a stage stay out.
    """
    count = -(-problem.num_layers // width)
    ends = [problem.num_layers * (i + 1) // count for i in range(count)]
    firsts = [0, *ends[:-1]]
    widest = max(b - a for a, b in zip(firsts, ends, strict=True))
    able = [(i, n) for i, n in enumerate(problem.nodes) if n.max_layers >= widest]
    if len(able) < count:
        raise TooLittleRoom(
            f"swarm: {count} stages of up to {widest} layers need {count} nodes with room for "
            f"that, but there are {len(able)}",
            describe_room(problem.nodes, problem.num_layers),
        )
    able.sort(key=lambda item: (item[1].tokens_per_s(widest), item[0]), reverse=True)
    strength = [0.0] * count
    slices: dict[NodeId, LayerRange] = {}
    for _, node in able:
        stage = strength.index(min(strength))
        slices[node.name] = LayerRange(firsts[stage], ends[stage])
        strength[stage] += node.tokens_per_s(widest)
    return _covering(problem, slices, "swarm")


def _covering(problem: Problem, slices: dict[NodeId, LayerRange], method: str) -> Placement:
    placement = Placement(problem.num_layers, slices)
    missing = placement.missing()
    if missing:
        raise TooLittleRoom(
            f"{method}: {describe_ranges(missing)} are held by no node",
            describe_room(problem.nodes, problem.num_layers),
        )
    return placement


def describe_room(nodes: Sequence[ProblemNode], num_layers: int) -> str:
    """How many layers the nodes hold at most, by type, against what the model has."""
    by_type: dict[str, list[int]] = {}
    for node in nodes:
        by_type.setdefault(node.type_name, []).append(node.max_layers)
    parts = [
        f"{len(room)} {name} hold {sum(room)} (up to {max(room)} each)"
        for name, room in sorted(by_type.items())
    ]
    total = sum(sum(room) for room in by_type.values())
    return f"the model has {num_layers} layers, the nodes hold {total} in all: " + (
        ", ".join(parts) if parts else "there are no nodes"
    )
