"""Blocks: runs of layers covered at a given flow by nested slices, found by price.

A block of width w at flow F is a set of slices such that flow F passes from its left to its right
end: either one node over the whole width beside a block for what it leaves, or two blocks one after
the other. The cheapest block per width at given node prices comes from a dynamic programme over
(width, flow on a grid). Blocks chain with and without partial inference, since all ends meet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRID = 1500
"""Steps of F; rates are rounded down to them, so that a block passes F in truth."""
EXACT = 1e-9

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slice:
    """A node of class `kind` on layers [first, end) of its block."""

    kind: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Block:
    """Slices, sorted, that pass the flow over `width` layers."""

    width: int
    slices: tuple[Slice, ...]

    def uses(self, kinds: int) -> tuple[int, ...]:
        """How many nodes of each class."""
        counts = [0] * kinds
        for piece in self.slices:
            counts[piece.kind] += 1
        return tuple(counts)

    @property
    def left(self) -> int:
        """Nodes that begin where the block begins."""
        return sum(1 for piece in self.slices if piece.first == 0)

    @property
    def right(self) -> int:
        """Nodes that end where the block ends."""
        return sum(1 for piece in self.slices if piece.end == self.width)


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of equal nodes: rate by layers held, and how many there are."""

    rates: tuple[float, ...]
    count: int


def flat_blocks(kinds: Sequence[Kind], flow: float, most: int) -> list[Block]:
    """Blocks whose nodes all span the width, none to spare; at most about `most`, by width."""
    widest = max((len(k.rates) for k in kinds), default=0)
    blocks: list[Block] = []
    for width in range(1, widest + 1):
        blocks += _flat_of_width(kinds, flow, width, max(1, most // widest))
    return blocks


def _flat_of_width(kinds: Sequence[Kind], flow: float, width: int, most: int) -> list[Block]:
    able = sorted(
        (i for i, k in enumerate(kinds) if len(k.rates) >= width and k.rates[width - 1] > 0),
        key=lambda i: (-kinds[i].rates[width - 1], i),
    )
    enough = flow * (1 - EXACT)
    after = [0.0]
    for i in reversed(able):
        after.append(after[-1] + kinds[i].count * kinds[i].rates[width - 1])
    after.reverse()
    blocks: list[Block] = []
    stack: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    while stack and len(blocks) < most:
        at, total, taken = stack.pop()
        if total >= enough:
            pieces = [i for i, count in zip(able, taken, strict=False) for _ in range(count)]
            blocks.append(Block(width, tuple(Slice(i, 0, width) for i in sorted(pieces))))
            continue
        if at == len(able) or total + after[at] < enough:
            continue
        rate = kinds[able[at]].rates[width - 1]
        times = min(kinds[able[at]].count, math.ceil((enough - total) / rate))
        stack += [(at + 1, total + n * rate, (*taken, n)) for n in range(times + 1)]
    return blocks


class BlockPricer:
    """The cheapest block of each width, at prices per node class."""

    def __init__(self, kinds: Sequence[Kind], flow: float, max_width: int) -> None:
        self._kinds = kinds
        self._max_width = max_width
        self._steps: list[list[tuple[int, int]]] = [[] for _ in range(max_width + 1)]
        for i, kind in enumerate(kinds):
            for width in range(1, min(len(kind.rates), max_width) + 1):
                steps = min(GRID, math.floor(kind.rates[width - 1] / flow * GRID + EXACT))
                if steps > 0:
                    self._steps[width].append((i, steps))
        self._cost = np.zeros((max_width + 1, GRID + 1))
        self._choice = np.zeros((max_width + 1, GRID + 1), dtype=np.int64)

    def cheapest(self, prices: FloatArray) -> list[tuple[float, Block]]:
        """(price, block) for every width that can be covered, by width."""
        for width in range(1, self._max_width + 1):
            self._fill(width, prices)
        found = []
        for width in range(1, self._max_width + 1):
            cost = float(self._cost[width, GRID])
            if math.isfinite(cost):
                pieces = sorted(
                    self._pieces(width), key=lambda piece: (piece.first, piece.end, piece.kind)
                )
                found.append((cost, Block(width, tuple(pieces))))
        return found

    def _fill(self, width: int, prices: FloatArray) -> None:
        """Costs of all flows at one width: splits of narrower blocks, then nodes laid beside."""
        cost, choice = self._cost[width], self._choice[width]
        cost[:] = np.inf
        cost[0], choice[0] = 0.0, 0
        for left in range(1, width // 2 + 1):
            split = self._cost[left] + self._cost[width - left]
            better = split < cost
            cost[better] = split[better]
            choice[better] = -left
        improved = True
        while improved:
            improved = False
            for kind, steps in self._steps[width]:
                beside = np.empty_like(cost)
                beside[: steps + 1] = prices[kind]
                beside[steps + 1 :] = cost[1 : GRID + 1 - steps] + prices[kind]
                beside[0] = 0.0
                better = beside < cost - 1e-12
                if better.any():
                    cost[better] = beside[better]
                    choice[better] = kind + 1
                    improved = True

    def _pieces(self, width: int) -> list[Slice]:
        """The slices behind the cheapest block of a width."""
        pieces = []
        stack = [(0, width, GRID)]
        steps = [dict(row) for row in self._steps]
        while stack:
            first, wide, flow = stack.pop()
            if flow <= 0:
                continue
            choice = int(self._choice[wide, flow])
            if choice < 0:
                stack += [(first, -choice, flow), (first - choice, wide + choice, flow)]
            else:
                kind = choice - 1
                pieces.append(Slice(kind, first, first + wide))
                stack.append((first, wide, flow - steps[wide][kind]))
        return pieces
