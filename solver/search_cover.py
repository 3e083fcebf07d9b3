"""Covering all layers with blocks from the nodes of one or more pools, at a given flow.

A pool is a set of nodes among which links never bind. Columns (blocks) come from prices
(`BlockPricer`) and, where they are few, from listing all flat ones; an integer programme then
chooses among them. Between two pools in a chain the blocks on both sides must end in enough nodes
for the slow links between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from solver.search_blocks import Block, BlockPricer, Kind, flat_blocks
from solver.search_types import Budget

MAX_FLAT_BLOCKS = 1500
MAX_ROUNDS = 60
INTEGER_LIMIT_S = 4.0


@dataclass(frozen=True, slots=True)
class Pool:
    """Nodes by class, all well connected to each other."""

    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """Blocks of one pool at one flow. `most_layers` bounds what any choice of them covers."""

    blocks: tuple[Block, ...]
    most_layers: float


@dataclass(frozen=True, slots=True)
class Crossing:
    """Ways to cross from one pool to the next: (nodes that end before, nodes that begin after)."""

    ways: tuple[tuple[int, int], ...]


def make_columns(pool: Pool, flow: float, num_layers: int, budget: Budget) -> Columns:
    """Blocks among which a linear programme finds no cheaper one missing, plus flat ones."""
    kinds = pool.kinds
    if not kinds:
        return Columns((), 0.0)
    blocks = dict.fromkeys(flat_blocks(kinds, flow, MAX_FLAT_BLOCKS))
    width = min(num_layers, max(len(k.rates) for k in kinds))
    pricer = BlockPricer(kinds, flow, width)
    most = 0.0
    worth = np.array([_worth(kind, flow) for kind in kinds])
    for _ in range(MAX_ROUNDS):
        most, prices = _most_layers(kinds, list(blocks))
        priced = pricer.cheapest(prices)
        if any(not _within(kinds, block) for _, block in priced):
            # A node in surplus is free to the programme, and too many of it end up in one block.
            priced += pricer.cheapest(np.maximum(prices, worth))
        fresh = [
            block
            for _, block in priced
            if float(prices @ np.array(block.uses(len(kinds)))) < block.width - 1e-7
            and block not in blocks
            and _within(kinds, block)
        ]
        if not fresh or budget.over():
            break
        blocks.update(dict.fromkeys(fresh))
    return Columns(tuple(blocks), most)


def _worth(kind: Kind, flow: float) -> float:
    """Layers' worth of work a node of this kind does at most at this flow."""
    return max(k * min(rate, flow) for k, rate in enumerate(kind.rates, 1)) / flow


def _within(kinds: Sequence[Kind], block: Block) -> bool:
    return all(u <= k.count for u, k in zip(block.uses(len(kinds)), kinds, strict=True))


def _most_layers(kinds: Sequence[Kind], blocks: list[Block]) -> tuple[float, np.ndarray]:
    """Layers that fractions of blocks can cover, and the price of a node of each class."""
    if not blocks:
        return 0.0, np.zeros(len(kinds))
    uses = csr_array(np.array([b.uses(len(kinds)) for b in blocks], dtype=float).T)
    answer = linprog(
        [-float(b.width) for b in blocks],
        A_ub=uses,
        b_ub=[float(k.count) for k in kinds],
        method="highs",
    )
    return -float(answer.fun), np.maximum(0.0, -answer.ineqlin.marginals)


def choose(
    pools: Sequence[Pool],
    columns: Sequence[Columns],
    crossings: Sequence[Crossing],
    num_layers: int,
    budget: Budget,
) -> list[list[Block]] | None:
    """Blocks for each pool, in order along the layers, that cover them all; None if not found.

    The pools follow one another in the order given. Where a crossing asks for it, the first or last
    block of a pool is one that begins or ends in enough nodes.
    """
    if math.fsum(math.floor(c.most_layers + 1e-6) for c in columns) < num_layers:
        return None
    model = _Choice(pools, columns, crossings, num_layers)
    return model.solve(min(INTEGER_LIMIT_S, max(0.05, budget.left_s)))


class _Choice:
    """The integer programme: how often each block, which one first and last, which way across."""

    def __init__(
        self,
        pools: Sequence[Pool],
        columns: Sequence[Columns],
        crossings: Sequence[Crossing],
        num_layers: int,
    ) -> None:
        self._columns = columns
        self._rows: list[tuple[dict[int, float], float, float]] = []
        self._upper: list[float] = []
        self._nodes: list[float] = []
        self._times: list[list[int]] = []
        self._ends: dict[tuple[int, str], list[int]] = {}
        total: dict[int, float] = {}
        for pool, part in zip(pools, columns, strict=True):
            at = [self._variable(np.inf, len(b.slices)) for b in part.blocks]
            self._times.append(at)
            total.update({x: float(b.width) for x, b in zip(at, part.blocks, strict=True)})
            uses = [b.uses(len(pool.kinds)) for b in part.blocks]
            for k, kind in enumerate(pool.kinds):
                row = {x: float(u[k]) for x, u in zip(at, uses, strict=True) if u[k]}
                self._rows.append((row, 0.0, float(kind.count)))
        self._rows.append((total, float(num_layers), float(num_layers)))
        for c, crossing in enumerate(crossings):
            self._cross(c, crossing)
        for p in range(len(columns)):
            self._separate(p)

    def _variable(self, upper: float, nodes: int) -> int:
        self._upper.append(upper)
        self._nodes.append(float(nodes))
        return len(self._upper) - 1

    def _cross(self, c: int, crossing: Crossing) -> None:
        """One way is taken, and an end block on each side has the nodes it needs."""
        ways = [self._variable(1.0, 0) for _ in crossing.ways]
        self._rows.append((dict.fromkeys(ways, 1.0), 1.0, 1.0))
        for pool, side, index in ((c, "last", 0), (c + 1, "first", 1)):
            blocks = self._columns[pool].blocks
            chosen = [self._variable(1.0, 0) for _ in blocks]
            self._ends[pool, side] = chosen
            self._rows.append((dict.fromkeys(chosen, 1.0), 1.0, 1.0))
            sizes = [b.right if side == "last" else b.left for b in blocks]
            for need in sorted({way[index] for way in crossing.ways}):
                row = {x: 1.0 for x, size in zip(chosen, sizes, strict=True) if size >= need}
                row |= {
                    w: -1.0
                    for w, way in zip(ways, crossing.ways, strict=True)
                    if way[index] >= need
                }
                self._rows.append((row, 0.0, np.inf))

    def _separate(self, pool: int) -> None:
        """An end block is one of those used; the first is not the last."""
        first = self._ends.get((pool, "first"))
        last = self._ends.get((pool, "last"))
        for b, x in enumerate(self._times[pool]):
            row = {ends[b]: 1.0 for ends in (first, last) if ends is not None}
            if row:
                self._rows.append((row | {x: -1.0}, -np.inf, 0.0))

    def solve(self, limit_s: float) -> list[list[Block]] | None:
        size = len(self._upper)
        entries = [(r, x, v) for r, (row, _, _) in enumerate(self._rows) for x, v in row.items()]
        if not size or not entries:
            return None
        at, to, values = zip(*entries, strict=True)
        answer = milp(
            np.array(self._nodes),
            constraints=LinearConstraint(
                csr_array((values, (at, to)), shape=(len(self._rows), size)),
                [low for _, low, _ in self._rows],
                [high for _, _, high in self._rows],
            ),
            integrality=np.ones(size),
            bounds=Bounds(0.0, np.array(self._upper)),
            options={"time_limit": limit_s, "mip_rel_gap": 0.5},
        )
        if answer.x is None:
            return None
        return [self._ordered(p, answer.x) for p in range(len(self._columns))]

    def _ordered(self, pool: int, x: np.ndarray) -> list[Block]:
        """The pool's blocks: the one chosen as first, the rest by shape, the one chosen as last."""
        blocks = self._columns[pool].blocks
        times = [round(float(x[i])) for i in self._times[pool]]
        ends: dict[str, list[Block]] = {"first": [], "last": []}
        for side, taken in ends.items():
            chosen = self._ends.get((pool, side))
            if chosen is not None:
                b = next(b for b, i in enumerate(chosen) if x[i] > 0.5)
                times[b] -= 1
                taken.append(blocks[b])
        rest = [block for block, count in zip(blocks, times, strict=True) for _ in range(count)]
        return [*ends["first"], *rest, *ends["last"]]
