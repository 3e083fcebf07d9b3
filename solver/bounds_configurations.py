"""Can whole nodes give every layer a flow of F? A linear programme over layer configurations.

A configuration is a set of slices over one layer whose throughputs sum to F or more; L layers each
need one, and a node of type t that holds k layers serves k of them. Dropping that slices are
contiguous gives a linear programme whose columns are made as needed (Gilmore and Gomory 1961) by a
minimum knapsack. A "no" is a proof: it rests on prices under which every configuration costs at
least 1, while all nodes together are worth less than L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array

GRID = 2000
"""Steps of F in the knapsack; rates are rounded up to them, in favour of feasibility."""
TOLERANCE = 1e-7
MAX_COLUMNS = 2000
MAX_EXACT_STEPS = 200_000

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Supply:
    """`count` nodes whose rate when holding k layers is `rates[k-1]` tokens/s."""

    rates: tuple[float, ...]
    count: int


@dataclass(frozen=True, slots=True)
class _Item:
    """One way to use one node: `supply` holding `layers`, which gives each of them `rate`."""

    supply: int
    layers: int
    rate: float


Column = tuple[tuple[int, int], ...]
"""A configuration: (item, how often), by item."""


def is_feasible(
    supplies: Sequence[Supply], num_layers: int, flow: float, *, stop: Callable[[], bool]
) -> bool:
    """False only if proven that no placement passes `flow` tokens/s; True also if cut short."""
    items = _useful_items(supplies, flow)
    if not items:
        return False
    rates = np.array([item.rate for item in items])
    columns: list[Column] = [((i, math.ceil(flow / r - 1e-9)),) for i, r in enumerate(rates)]
    while len(columns) < MAX_COLUMNS and not stop():
        layers, prices = _master(supplies, items, columns)
        if layers >= num_layers - TOLERANCE:
            return True
        knapsack = _Knapsack(rates, prices, flow)
        if knapsack.cost > TOLERANCE and _worth(supplies, items, prices) < knapsack.cost * (
            num_layers - TOLERANCE
        ):
            return False
        found = knapsack.cheapest()
        if math.fsum(rates[i] * times for i, times in found) < flow * (1 - 1e-12):
            exact = knapsack.cheaper_than_one()
            if exact is None:
                return not knapsack.complete
            found = exact
        if found in columns:
            return True
        columns.append(found)
    return True


def _useful_items(supplies: Sequence[Supply], flow: float) -> list[_Item]:
    """Ways to use a node that no other way of the same node beats in both respects."""
    items = []
    for s, supply in enumerate(supplies):
        best = 0.0
        for k in range(len(supply.rates), 0, -1):
            rate = min(supply.rates[k - 1], flow)
            if rate > best and rate > flow * 1e-6:
                items.append(_Item(s, k, rate))
                best = rate
    return items


def _master(
    supplies: Sequence[Supply], items: Sequence[_Item], columns: Sequence[Column]
) -> tuple[float, FloatArray]:
    """Most layers that the columns cover, and the price of a layer-slot of each item."""
    size = len(items)
    rows, cols, values = [], [], []
    for i, item in enumerate(items):
        rows += [i, size + item.supply]
        cols += [i, i]
        values += [-float(item.layers), 1.0]
    for c, column in enumerate(columns):
        for i, times in column:
            rows.append(i)
            cols.append(size + c)
            values.append(float(times))
    answer = linprog(
        np.concatenate([np.zeros(size), -np.ones(len(columns))]),
        A_ub=csr_array(
            (np.array(values), (rows, cols)), shape=(size + len(supplies), size + len(columns))
        ),
        b_ub=np.concatenate([np.zeros(size), [float(s.count) for s in supplies]]),
        method="highs",
    )
    prices: FloatArray = np.maximum(0.0, -answer.ineqlin.marginals[:size])
    return -float(answer.fun), prices


def _worth(supplies: Sequence[Supply], items: Sequence[_Item], prices: FloatArray) -> float:
    """What all nodes are worth when each is used in its dearest way."""
    best = [0.0] * len(supplies)
    for item, price in zip(items, prices, strict=True):
        best[item.supply] = max(best[item.supply], item.layers * float(price))
    return math.fsum(b * s.count for b, s in zip(best, supplies, strict=True))


class _Knapsack:
    """The cheapest configuration at given prices, on the grid and exactly."""

    def __init__(self, rates: FloatArray, prices: FloatArray, flow: float) -> None:
        self._rates, self._prices, self._flow = rates, prices, flow
        self.complete = True
        weights = np.ceil(rates / flow * GRID - 1e-9).astype(np.int64).clip(1, GRID)
        self._weights = weights
        self._least = np.zeros(GRID + 1)
        self._choice = np.zeros(GRID + 1, dtype=np.int64)
        for need in range(1, GRID + 1):
            costs = self._least[np.maximum(need - weights, 0)] + prices
            choice = int(np.argmin(costs))
            self._choice[need], self._least[need] = choice, costs[choice]

    @property
    def cost(self) -> float:
        """No configuration costs less, by the grid."""
        return float(self._least[GRID])

    def cheapest(self) -> Column:
        """A cheapest configuration on the grid; its true rates may fall short of the flow."""
        need, times = GRID, dict[int, int]()
        while need > 0:
            item = int(self._choice[need])
            times[item] = times.get(item, 0) + 1
            need = max(0, need - int(self._weights[item]))
        return tuple(sorted(times.items()))

    def cheaper_than_one(self) -> Column | None:
        """A true configuration that costs less than 1, or None; depth first, cut by the grid.

        `complete` turns False if the search was cut short, so that None proves nothing.
        """
        order = [int(i) for i in np.argsort(-self._rates / (self._prices + 1e-12), kind="stable")]
        unit = self._flow / GRID
        stack: list[tuple[int, float, float, tuple[int, ...]]] = [(0, self._flow, 0.0, ())]
        for _ in range(MAX_EXACT_STEPS):
            if not stack:
                return None
            at, need, cost, taken = stack.pop()
            steps = min(GRID, max(0, math.ceil(need / unit - 1e-9)))
            if cost + float(self._least[steps]) >= 1 - TOLERANCE:
                continue
            if need <= self._flow * 1e-12:
                return tuple(sorted((i, taken.count(i)) for i in sorted(set(taken))))
            if at == len(order):
                continue
            item = order[at]
            rate, price = float(self._rates[item]), float(self._prices[item])
            stack.append((at + 1, need, cost, taken))
            stack.append((at, need - rate, cost + price, (*taken, item)))
        self.complete = False
        return None
