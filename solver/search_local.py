"""Neighbourhood search on any network: move, resize, exchange and shift slices, judged by flow.

Simulated annealing on the max flow plus a little of how well the other layers are covered, which
tells plateaus apart. Every accepted best is a real value of the judge. Deterministic for a seed and
a number of steps; time only decides how many steps there are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np

from solver.search_chain import Candidate
from solver.search_index import IntArray, ProblemIndex
from solver.search_judge import Judge
from solver.search_types import Budget

START_TEMPERATURE = 0.05
END_TEMPERATURE = 0.0005
COVER_WEIGHT = 0.05
ROUND_STEPS = 20_000
"""Steps from the first temperature to the last; then again from the best."""

Arrays = tuple[IntArray, IntArray]


def improve(
    index: ProblemIndex,
    judge: Judge,
    start: Candidate,
    budget: Budget,
    *,
    seed: int,
    patience_s: float,
    offer: Callable[[Candidate], None],
) -> Candidate:
    """The best placement found from `start`; stops after `patience_s` without a better one."""
    walk = _Walk(index, judge, random.Random(seed))
    best, best_at = start, budget.seconds
    while not budget.over() and budget.seconds - best_at < patience_s:
        now = (best.first.copy(), best.end.copy())
        score = walk.score(*now, best.tokens_per_s, best.tokens_per_s)
        for step in range(ROUND_STEPS):
            if step % 64 == 0 and budget.over():
                return best
            heat = START_TEMPERATURE * (END_TEMPERATURE / START_TEMPERATURE) ** (step / ROUND_STEPS)
            trial = walk.neighbour(now)
            value = judge.tokens_per_s(*trial)
            points = walk.score(*trial, value, best.tokens_per_s)
            if points >= score or walk.chance() < math.exp((points - score) / heat):
                now, score = trial, points
            if value > best.tokens_per_s * (1 + 1e-9):
                best, best_at = Candidate(value, trial[0].copy(), trial[1].copy()), budget.seconds
                offer(best)
                score = walk.score(*now, value, value)
    return best


class _Walk:
    def __init__(self, index: ProblemIndex, judge: Judge, rng: random.Random) -> None:
        self._index, self._judge, self._rng = index, judge, rng

    def chance(self) -> float:
        return self._rng.random()

    def score(self, first: IntArray, end: IntArray, value: float, best: float) -> float:
        """Flow and mean coverage (up to a little above the best flow), relative to the best."""
        scale = max(best, 1e-9)
        cover = np.minimum(self._judge.coverage(first, end), 1.2 * scale).mean()
        return value / scale + COVER_WEIGHT * float(cover) / scale

    def neighbour(self, now: Arrays) -> Arrays:
        first, end = now[0].copy(), now[1].copy()
        move = self._rng.random()
        if move < 0.35:
            self._exchange(first, end)
        elif move < 0.6:
            self._shift_border(first, end)
        elif move < 0.8:
            self._resize(first, end)
        else:
            self._place_anew(first, end)
        return first, end

    def _exchange(self, first: IntArray, end: IntArray) -> None:
        """Two nodes swap slices, if each has room for the other's."""
        i, j = self._rng.randrange(len(first)), self._rng.randrange(len(first))
        room = self._index.max_layers
        if end[i] - first[i] <= room[j] and end[j] - first[j] <= room[i]:
            first[i], first[j] = first[j], first[i]
            end[i], end[j] = end[j], end[i]

    def _shift_border(self, first: IntArray, end: IntArray) -> None:
        """All slices that meet at one layer meet one layer further on, or back."""
        inner = [int(x) for x in np.unique(end) if 0 < x < self._index.num_layers]
        if not inner:
            return
        border = self._rng.choice(inner)
        to = border + self._rng.choice((-1, 1))
        begins = (first == border) & (end > first)
        ends = (end == border) & (end > first)
        new_first, new_end = np.where(begins, to, first), np.where(ends, to, end)
        size = new_end - new_first
        held = end > first
        if (size[held] > 0).all() and (size <= self._index.max_layers).all():
            first[:], end[:] = new_first, new_end

    def _resize(self, first: IntArray, end: IntArray) -> None:
        """One end of one slice moves by a layer or two."""
        i = self._rng.randrange(len(first))
        by = self._rng.choice((-2, -1, 1, 2))
        a, b = int(first[i]), int(end[i])
        if self._rng.random() < 0.5:
            a += by
        else:
            b += by
        if 0 <= a < b <= self._index.num_layers and b - a <= self._index.max_layers[i]:
            first[i], end[i] = a, b

    def _place_anew(self, first: IntArray, end: IntArray) -> None:
        """A node joins another's border, or goes where coverage is least, with any size."""
        i = self._rng.randrange(len(first))
        layers = self._rng.randint(1, int(self._index.max_layers[i]))
        if self._rng.random() < 0.5:
            weakest = int(np.argmin(self._judge.coverage(first, end)))
            a = weakest - self._rng.randrange(layers)
        else:
            j = self._rng.randrange(len(first))
            a = int(self._rng.choice((first[j], end[j], end[j] - layers)))
        a = min(max(a, 0), self._index.num_layers - layers)
        first[i], end[i] = a, a + layers
