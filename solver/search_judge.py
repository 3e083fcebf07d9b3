"""A fast max flow for search: the value only, close to exact; `solver.flow` has the last word.

Where links never bind and partial inference is allowed, the max flow is the least layer's summed
throughput: nodes are intervals with capacities, the flow's min cut is a set of intervals without
which some layer is uncovered, and the cheapest such set is all of one layer (Menger on intervals).
Otherwise an integer max flow (scipy, C) within 1e-8 of the largest capacity.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from solver.search_index import FloatArray, IntArray, ProblemIndex

INT_RANGE = 2**30
"""Capacities are scaled into int32, which is all scipy's maximum_flow takes."""


LEAST_FLOW = 1e-12
"""tokens/s; less counts as none. The scale to whole numbers would overflow."""


class Judge:
    """Values placements given as arrays: node i holds [first[i], end[i]), or nothing if empty."""

    def __init__(self, index: ProblemIndex, *, partial_inference: bool = True) -> None:
        self._index = index
        self._partial = partial_inference
        self._rows = np.arange(len(index))
        self._nics_bind = bool(
            np.any(index.nic_in < index.peak) or np.any(index.nic_out < index.peak)
        )

    def tokens_per_s(self, first: IntArray, end: IntArray) -> float:
        """Max flow in tokens/s; 0 where some layer is held by nobody or not reached."""
        held = end > first
        if not held.any():
            return 0.0
        rates = self._index.rate[self._rows, end - first]
        weakest = float(self.coverage(first, end).min())
        if weakest < LEAST_FLOW:
            return 0.0
        if self._index.wide and self._partial:
            return weakest
        return self._flow(np.flatnonzero(held), first, end, rates, weakest)

    def coverage(self, first: IntArray, end: IntArray) -> FloatArray:
        """Summed throughput of each layer's holders, tokens/s: no flow exceeds any of them."""
        rates = self._index.rate[self._rows, end - first]
        steps = np.zeros(self._index.num_layers + 1)
        np.add.at(steps, first, rates)
        np.add.at(steps, end, -rates)
        covered = np.cumsum(steps)[:-1]
        covered[covered < 1e-9 * max(1.0, float(np.abs(covered).max()))] = 0.0
        return covered

    def _flow(
        self, at: IntArray, first: IntArray, end: IntArray, rates: FloatArray, most: float
    ) -> float:
        """Nodes are split into 2 vertices, or 4 where NICs may bind; the last two are the router.

        No edge needs to carry more than `most`, so that is where capacities are cut off.
        """
        index, size = self._index, len(at)
        starts, ends, local = first[at], end[at], np.arange(size)
        fits = index.link[np.ix_(at, at)] > 0
        if self._partial:
            fits &= (starts[None, :] <= ends[:, None]) & (ends[:, None] < ends[None, :])
        else:
            fits &= starts[None, :] == ends[:, None]
        i, j = np.nonzero(fits)
        head, tail = starts == 0, ends == index.num_layers
        lanes = 4 if self._nics_bind else 2
        source, sink = lanes * size, lanes * size + 1
        enter, leave = local * lanes + (lanes - 2) // 2, local * lanes + lanes // 2
        rows = [enter, leave[i] + (lanes - 2) // 2, np.full(head.sum(), source), leave[tail]]
        cols = [leave, enter[j] - (lanes - 2) // 2, enter[head], np.full(tail.sum(), sink)]
        caps = [
            rates[at],
            index.link[at[i], at[j]],
            index.source[at[head]],
            index.sink[at[tail]],
        ]
        if self._nics_bind:
            rows += [enter - 1, leave]
            cols += [enter, leave + 1]
            caps += [index.nic_in[at], index.nic_out[at]]
        scale = INT_RANGE / most
        whole = np.minimum(np.concatenate(caps) * scale, INT_RANGE).astype(np.int32)
        graph = csr_array(
            (whole, (np.concatenate(rows), np.concatenate(cols))), shape=(sink + 1, sink + 1)
        )
        return float(maximum_flow(graph, source, sink).flow_value) / scale
