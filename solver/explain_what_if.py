"""What if: the same cluster with nodes added or removed, and what one more node would bring.

A node is added as a twin of one that is there: its type's tables, its region's links. Without
replanning, a twin helps only where the present plan is tight; `best_addition` says how much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.problem import SINK, SOURCE, Problem, ProblemError, ProblemLink, ProblemNode
from solver.search_index import ProblemIndex
from solver.search_judge import Judge


@dataclass(frozen=True, slots=True)
class Addition:
    """`count` more nodes of a type in a region; an empty region is wherever the type is first."""

    type_name: str
    region: str
    count: int = 1

    def __str__(self) -> str:
        """As `parse_addition` reads it."""
        return self.type_name + (f"@{self.region}" if self.region else "") + f"={self.count}"


def parse_addition(text: str) -> Addition:
    """`L4@eu-west=2`, `L4@eu-west`, `L4=2` or `L4`. ProblemError in words if it is none of them."""
    what, _, times = text.partition("=")
    type_name, _, region = what.partition("@")
    if not type_name or (times and not times.isdigit()) or times == "0" or len(times) > 4:
        raise ProblemError(
            f"--add {text!r}: expected TYPE@REGION=COUNT, as in L4@eu-west=2", param="add"
        )
    return Addition(type_name, region, int(times or "1"))


def what_if(
    problem: Problem, *, add: Sequence[Addition] = (), remove: Iterable[NodeId] = ()
) -> Problem:
    """The problem with nodes removed, then added. ProblemError for unknown names or types."""
    changed = problem.without(remove)
    for addition in add:
        for _ in range(addition.count):
            changed = with_twin(changed, _template(problem, addition), addition.region)
    return changed


def with_twin(problem: Problem, like: ProblemNode, region: str = "") -> Problem:
    """One more node like `like`, in `region` (its own if empty), linked as its neighbours are.

    Links are those of a node in that region, the same type if there is one; to that node itself the
    twin is linked as that node is to its best-linked neighbour.
    """
    region = region or like.region
    here = [n for n in problem.nodes if n.region == region]
    if not here:
        known = ", ".join(sorted({n.region or "(none)" for n in problem.nodes}))
        raise ProblemError(
            f"no node is in region {region!r}, so its links are unknown; regions: {known}",
            param="add",
        )
    model = min(here, key=lambda n: (n.type_name != like.type_name, n.name))
    taken = {n.name for n in problem.nodes}
    name = next(
        NodeId(f"new-{like.type_name}-{i}")
        for i in range(1, len(taken) + 2)
        if NodeId(f"new-{like.type_name}-{i}") not in taken
    )
    links = list(problem.links)
    out = [k for k in problem.links if k.src == model.name]
    into = [k for k in problem.links if k.dst == model.name]
    links += [replace(k, src=name) for k in out]
    links += [replace(k, dst=name) for k in into]
    near = [k for k in out if k.dst != SINK] or [k for k in into if k.src != SOURCE]
    if near:
        best = max(near, key=lambda k: (k.bytes_per_s, k.dst, k.src))
        links.append(ProblemLink(name, model.name, best.bytes_per_s, best.latency_s))
        links.append(ProblemLink(model.name, name, best.bytes_per_s, best.latency_s))
    node = replace(like, name=name, region=region)
    return replace(problem, nodes=(*problem.nodes, node), links=tuple(links))


def _template(problem: Problem, addition: Addition) -> ProblemNode:
    alike = [n for n in problem.nodes if n.type_name == addition.type_name]
    if not alike:
        known = ", ".join(sorted({n.type_name for n in problem.nodes}))
        raise ProblemError(
            f"no node is of type {addition.type_name}, so its tables are unknown; types: {known}",
            param="add",
        )
    return min(alike, key=lambda n: (n.region != addition.region, n.name))


@dataclass(frozen=True, slots=True)
class Gain:
    """Where one node would go in a plan that stays as it is, and the flow then."""

    layers: LayerRange
    tokens_per_s: float


def best_addition(
    problem: Problem, placement: Placement, name: NodeId, near: LayerRange, partial: bool
) -> Gain | None:
    """The slice for the idle node `name` that raises the max flow most; None if none raises it.

    Slices that overlap or touch `near` are tried; the smallest of equally good ones is taken.
    """
    index = ProblemIndex(problem)
    if name not in index.names:
        return None
    judge = Judge(index, partial_inference=partial)
    first, end = index.arrays(placement)
    before = judge.tokens_per_s(first, end)
    at = index.names.index(name)
    best: tuple[float, LayerRange] | None = None
    for layers in range(1, int(index.max_layers[at]) + 1):
        low = max(0, near.first - layers)
        for start in range(low, min(near.end, index.num_layers - layers) + 1):
            trial_first, trial_end = np.array(first), np.array(end)
            trial_first[at], trial_end[at] = start, start + layers
            value = judge.tokens_per_s(trial_first, trial_end)
            if best is None or value > best[0] * (1 + 1e-9):
                best = (value, LayerRange(start, start + layers))
    if best is None or best[0] <= before * (1 + 1e-6):
        return None
    return Gain(best[1], best[0])
