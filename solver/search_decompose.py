"""Decomposition: which pools work together on one pipeline, and which alone.

Flows of groups that share no node add up, so the best way to split the pools into groups is wanted;
each group is a chain (`search_chain`). A large pool is solved as pods. Few pools are split in every
way; with many, pools that cannot hold the model alone join their best-connected neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from solver.search_chain import Candidate, best_chain
from solver.search_index import ProblemIndex
from solver.search_judge import Judge
from solver.search_pools import NodePool, pods_of
from solver.search_types import Budget

EVERY_SPLIT_UP_TO = 4
CHAIN_SHARE = 0.4
"""Of the time left, what one group may take."""

Offer = Callable[[Candidate], None]
Group = tuple[int, ...]


def decompose(
    index: ProblemIndex, judge: Judge, pools: Sequence[NodePool], budget: Budget, offer: Offer
) -> None:
    """Hands `offer` a candidate for each way of grouping the pools that works.

    Small groups come first: they are quick, and where a pool holds the model alone they are best.
    """
    solver = _Groups(index, judge, pools, budget)
    splits = (
        sorted(_splits(list(range(len(pools)))), key=lambda split: (-len(split), sorted(split)))
        if len(pools) <= EVERY_SPLIT_UP_TO
        else _merged_splits(index, pools)
    )
    for split in splits:
        if budget.over():
            return
        found = [c for c in (solver.best(group) for group in split) if c is not None]
        if found:
            first = np.sum([c.first for c in found], axis=0)
            end = np.sum([c.end for c in found], axis=0)
            offer(Candidate(judge.tokens_per_s(first, end), first, end))


def _splits(items: list[int]) -> Iterator[list[Group]]:
    """Every partition of `items`."""
    if not items:
        yield []
        return
    head, rest = items[0], items[1:]
    for split in _splits(rest):
        for g, group in enumerate(split):
            yield [*split[:g], (head, *group), *split[g + 1 :]]
        yield [(head,), *split]


def _merged_splits(index: ProblemIndex, pools: Sequence[NodePool]) -> list[list[Group]]:
    """Pools alone; then, step by step, the smallest group joins the one it is best linked to."""
    groups: list[Group] = [(p,) for p in range(len(pools))]
    splits = [list(groups)]
    room = [sum(int(index.max_layers[i]) for i in pool.nodes) for pool in pools]

    def between(a: Group, b: Group) -> float:
        ours = [i for p in a for i in pools[p].nodes]
        theirs = [i for p in b for i in pools[p].nodes]
        return float(index.link[np.ix_(ours, theirs)].sum())

    while len(groups) > 1 and min(sum(room[p] for p in g) for g in groups) < 2 * index.num_layers:
        small = min(groups, key=lambda g: (sum(room[p] for p in g), g))
        others = [g for g in groups if g != small]
        mate = max(others, key=lambda g: (between(small, g), tuple(-p for p in g)))
        groups = sorted([g for g in others if g != mate] + [tuple(sorted(small + mate))])
        splits.append(list(groups))
    return splits


class _Groups:
    """Best chains by group, each computed once."""

    def __init__(
        self, index: ProblemIndex, judge: Judge, pools: Sequence[NodePool], budget: Budget
    ) -> None:
        self._index, self._judge, self._pools = index, judge, pools
        self._budget = budget
        self._known: dict[Group, Candidate | None] = {}

    def best(self, group: Group) -> Candidate | None:
        if group not in self._known:
            pools = [self._pools[p] for p in group]
            pods = pods_of(self._index, pools[0]) if len(pools) == 1 else []
            found = self._pods(pods) if len(pods) > 1 else self._chain(pools)
            self._known[group] = found
        return self._known[group]

    def _chain(self, pools: Sequence[NodePool]) -> Candidate | None:
        """A chain through all of `pools`; no more flow is looked for than they can compute."""
        nodes = [i for pool in pools for i in pool.nodes]
        layers = np.arange(self._index.rate.shape[1])
        work = float((self._index.rate[nodes] * layers).max(axis=1).sum())
        high = work / self._index.num_layers
        part = self._budget.part(CHAIN_SHARE * self._budget.left_s)
        return best_chain(self._index, self._judge, pools, high, part)

    def _pods(self, pods: Sequence[NodePool]) -> Candidate | None:
        """Each pod a chain of its own; pods of the same composition are solved once."""
        first = np.zeros(len(self._index), dtype=np.int64)
        end = np.zeros(len(self._index), dtype=np.int64)
        solved: dict[object, tuple[NodePool, Candidate | None]] = {}
        for pod in pods:
            if pod.pool not in solved:
                solved[pod.pool] = (pod, self._chain([pod]))
            model, found = solved[pod.pool]
            if found is None:
                continue
            for like, own in zip(model.members, pod.members, strict=True):
                first[list(own)] = found.first[list(like)]
                end[list(own)] = found.end[list(like)]
        return Candidate(self._judge.tokens_per_s(first, end), first, end)
