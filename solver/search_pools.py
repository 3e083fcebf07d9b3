"""Splits a cluster into pools: nodes among which links do not bind, and pods of large pools.

Where the whole network is wide there is one pool. Otherwise a pool is a region, or what of it is
well connected. A large pool is dealt out into pods of like composition, each a pipeline of its own:
their flows add up, and a pod is solved in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from solver.search_blocks import Kind
from solver.search_cover import Pool
from solver.search_index import ProblemIndex

POD_NODES = 48
"""About where a block programme takes a second; larger pods gain little, since what rounding to
whole nodes loses falls with one over the nodes per stage."""
POD_ROOM = 3.0
"""A pod has room for at least so many copies of the model."""


@dataclass(frozen=True, slots=True)
class NodePool:
    """A pool and which nodes (indices) its kinds stand for, kind by kind."""

    pool: Pool
    members: tuple[tuple[int, ...], ...]

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(sorted(i for kind in self.members for i in kind))


def make_pool(index: ProblemIndex, nodes: Iterable[int]) -> NodePool:
    """A pool of the given nodes; nodes with the same table are one kind, whatever their type."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for i in sorted(nodes):
        rates = tuple(float(r) for r in index.rate[i, 1 : int(index.max_layers[i]) + 1])
        groups.setdefault(rates, []).append(i)
    return NodePool(
        Pool(tuple(Kind(rates, len(members)) for rates, members in groups.items())),
        tuple(tuple(members) for members in groups.values()),
    )


def pools_of(index: ProblemIndex) -> list[NodePool]:
    """The cluster as pools, in order of their first node."""
    if index.wide:
        return [make_pool(index, range(len(index)))] if len(index) else []
    pools: list[NodePool] = []
    for region in sorted({node.region for node in index.nodes}):
        members = [i for i, node in enumerate(index.nodes) if node.region == region]
        pools += [make_pool(index, group) for group in _connected_well(index, members)]
    return sorted(pools, key=lambda p: p.nodes)


def _connected_well(index: ProblemIndex, members: Sequence[int]) -> list[list[int]]:
    """Greedy groups among which links never bind; one group where that is so for all."""
    if index.wide_among(members):
        return [list(members)]
    groups: list[list[int]] = []
    for i in members:
        for group in groups:
            peaks = index.peak[group].clip(max=float(index.peak[i]))
            if (index.link[i, group] >= peaks).all() and (index.link[group, i] >= peaks).all():
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def pods_of(index: ProblemIndex, pool: NodePool) -> list[NodePool]:
    """The pool itself, or pods of it: each class is dealt out in turn, so that pods are alike."""
    room = sum(int(index.max_layers[i]) for i in pool.nodes)
    count = min(len(pool.nodes) // POD_NODES, int(room / (POD_ROOM * index.num_layers)))
    if count < 2:
        return [pool]
    dealt: list[list[int]] = [[] for _ in range(count)]
    at = 0
    for kind in pool.members:
        for i in kind:
            dealt[at % count].append(i)
            at += 1
    return [make_pool(index, nodes) for nodes in dealt]
