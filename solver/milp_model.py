"""Helix's placement programme in CVXPY (ASPLOS '25, section 4.4), and its lowering for HiGHS.

Variables: first layer of each node, one-hot number of layers, flow and validity of each link, and
with partial inference two conditions per link. Objective: flow out of the source. Only this module
imports cvxpy.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cvxpy as cp
import numpy as np
from scipy.sparse import csr_array

from helix_mq.layers import Placement
from solver.flow import max_flow
from solver.milp_highs import FloatArray, LinearModel, MilpRun
from solver.milp_prune import interchangeable, kept_links
from solver.problem import SINK, SOURCE
from solver.search_index import IntArray, ProblemIndex
from solver.search_types import MilpOptions, SolverMissing


class HelixModel:
    """The programme of one problem. `flow_bound` (tokens/s) caps the objective from above.

    Node i holds layers [first[i], first[i] + layers of i); each usable node holds at least one.
    """

    def __init__(
        self,
        index: ProblemIndex,
        options: MilpOptions,
        *,
        partial_inference: bool,
        flow_bound: float,
    ) -> None:
        self._index = index
        self._partial = partial_inference
        size, last = len(index), index.num_layers
        self._owner = np.concatenate(
            [np.full(int(k), i, dtype=np.int64) for i, k in enumerate(index.max_layers)]
        )
        self._count = np.concatenate(
            [np.arange(1, int(k) + 1, dtype=np.int64) for k in index.max_layers]
        )
        self._i, self._j = np.nonzero(kept_links(index, options))
        self._sources = np.flatnonzero(index.source > 0)
        self._sinks = np.flatnonzero(index.sink > 0)
        holds = _incidence(self._owner, size)
        layers = _incidence(self._owner, size, self._count)
        rates = _incidence(self._owner, size, index.rate[self._owner, self._count])

        self.first = cp.Variable(size, integer=True, name="first", bounds=[0, last - 1])
        self.holds = cp.Variable(len(self._owner), boolean=True, name="holds")
        self.enter = cp.Variable(len(self._sources), nonneg=True, name="flow_source")
        self.leave = cp.Variable(len(self._sinks), nonneg=True, name="flow_sink")
        self.valid_enter = cp.Variable(len(self._sources), boolean=True, name="valid_source")
        self.valid_leave = cp.Variable(len(self._sinks), boolean=True, name="valid_sink")
        self._end = self.first + layers @ self.holds
        constraints = [holds @ self.holds == 1, self._end <= last]

        into = _incidence(self._sources, size) @ self.enter
        out = _incidence(self._sinks, size) @ self.leave
        self.flow: cp.Variable | None = None
        if len(self._i):
            self.flow = cp.Variable(len(self._i), nonneg=True, name="flow")
            self.valid = cp.Variable(len(self._i), boolean=True, name="valid")
            arrives = _incidence(self._j, size) @ self.flow
            departs = _incidence(self._i, size) @ self.flow
            constraints += self._link_constraints(options)
            if (index.nic_in < index.peak).any():
                constraints.append(arrives <= index.nic_in)
            if (index.nic_out < index.peak).any():
                constraints.append(departs <= index.nic_out)
            into, out = into + arrives, out + departs
        constraints += [into == out, into <= rates @ self.holds]
        constraints += self._router_constraints(options)
        if options.break_symmetry and options.keep_links is None:
            constraints += [
                self.first[a] <= self.first[b]
                for members in self._alike()
                for a, b in pairwise(members)
            ]
        total = np.ones(len(self._sources)) @ self.enter
        constraints.append(total <= flow_bound)
        self.problem = cp.Problem(cp.Maximize(total), constraints)

    def _alike(self) -> list[tuple[int, ...]]:
        groups = [c.members for c in self._index.classes]
        return [g for g in groups if len(g) > 1 and interchangeable(self._index, g)]

    def _link_constraints(self, options: MilpOptions) -> list[Any]:
        """Flow only over valid links; a link is valid only where j can go on from i's end."""
        assert self.flow is not None
        index, last = self._index, self._index.num_layers
        peak = np.minimum(index.peak[self._i], index.peak[self._j])
        capacity = np.minimum(index.link[self._i, self._j], peak)
        end_i, end_j, first_j = self._end[self._i], self._end[self._j], self.first[self._j]
        constraints = [self.flow <= _scaled(capacity) @ self.valid]
        if not self._partial:
            return [
                *constraints,
                last * self.valid <= last + (first_j - end_i),
                last * self.valid <= last - (first_j - end_i),
            ]
        self.reached = cp.Variable(len(self._i), boolean=True, name="reached")
        self.beyond = cp.Variable(len(self._i), boolean=True, name="beyond")
        constraints += [
            (last + 1) * (1 - self.reached) >= first_j - end_i,
            end_j - end_i >= 1 - (last + 1) * (1 - self.beyond),
            2 * self.valid <= self.reached + self.beyond,
        ]
        if not options.remove_redundant:
            constraints += [
                (last + 1) * self.reached >= end_i - first_j + 1,
                (last + 1) * self.beyond >= end_j - end_i,
                self.reached + self.beyond - self.valid <= 1,
            ]
        return constraints

    def _router_constraints(self, options: MilpOptions) -> list[Any]:
        """From the source only into layer 0; to the sink only out of the last layer."""
        index, last = self._index, self._index.num_layers
        first, end = self.first[self._sources], self._end[self._sinks]
        enter = np.minimum(index.source[self._sources], index.peak[self._sources])
        leave = np.minimum(index.sink[self._sinks], index.peak[self._sinks])
        constraints = [
            first <= last * (1 - self.valid_enter),
            last * self.valid_leave <= end,
            self.enter <= _scaled(enter) @ self.valid_enter,
            self.leave <= _scaled(leave) @ self.valid_leave,
        ]
        if not options.remove_redundant:
            constraints.append(self.valid_enter >= 1 - first)
            if last > 1:
                constraints.append((last - 1) * (self.valid_leave + 1) >= end)
        return constraints

    def lower(self) -> tuple[LinearModel, Any, Any]:
        """The programme as HiGHS takes it, and what CVXPY needs to unpack its answer.

        SolverMissing if CVXPY does not find HiGHS (it drops it silently when versions clash).
        """
        if "HIGHS" not in cp.installed_solvers():  # type: ignore[no-untyped-call]
            raise SolverMissing(
                "CVXPY does not find HiGHS: install highspy>=1.14,<1.15; a package that bundles "
                "its own HiGHS (ortools) makes it drop out",
                param="solver",
            )
        data, chain, inverse = self.problem.get_problem_data("HIGHS")
        columns = len(data["c"])
        integer = np.zeros(columns, dtype=bool)
        integer[list(data["bool_vars_idx"]) + list(data["int_vars_idx"])] = True
        lower = np.full(columns, -np.inf) if data["lower_bounds"] is None else data["lower_bounds"]
        upper = np.full(columns, np.inf) if data["upper_bounds"] is None else data["upper_bounds"]
        lower, upper = np.array(lower, dtype=float), np.array(upper, dtype=float)
        booleans = list(data["bool_vars_idx"])
        lower[booleans], upper[booleans] = 0.0, 1.0
        row_lower = np.full(len(data["b"]), -np.inf)
        row_lower[: data["dims"].zero] = data["b"][: data["dims"].zero]
        self._order: list[cp.Variable] = list(data["param_prob"].variables)
        names = [f"{v.name()}_{x}" for v in self._order for x in range(v.size)]
        model = LinearModel(
            cost=np.array(data["c"], dtype=float),
            matrix=data["A"].tocsc(),
            row_lower=row_lower,
            row_upper=np.array(data["b"], dtype=float),
            col_lower=lower,
            col_upper=upper,
            integer=integer,
            names=names,
        )
        return model, chain, inverse

    def start(self, placement: Placement) -> FloatArray:
        """A full solution vector for a placement; call after `lower`.

        Nodes without layers get one at the front; alike nodes are put in order.
        """
        first, end = self._index.arrays(placement)
        idle = end <= first
        first[idle], end[idle] = 0, 1
        for members in self._alike():
            order = sorted(members, key=lambda i: (first[i], end[i]))
            first[list(members)], end[list(members)] = first[order], end[order]
        flow = max_flow(
            self._index.problem,
            self._index.placement(first, end),
            partial_inference=self._partial,
        )
        carried = {(e.src, e.dst): e.tokens_per_s for e in flow.edges}
        names = self._index.names
        values = {
            self.first.id: first,
            self.holds.id: self._count == (end - first)[self._owner],
            self.enter.id: [carried.get((SOURCE, names[i]), 0.0) for i in self._sources],
            self.leave.id: [carried.get((names[i], SINK), 0.0) for i in self._sinks],
            self.valid_enter.id: first[self._sources] == 0,
            self.valid_leave.id: end[self._sinks] == self._index.num_layers,
        }
        if self.flow is not None:
            ends = zip(self._i, self._j, strict=True)
            values[self.flow.id] = [carried.get((names[i], names[j]), 0.0) for i, j in ends]
            at, begin, stop = end[self._i], first[self._j], end[self._j]
            if self._partial:
                values[self.reached.id] = begin <= at
                values[self.beyond.id] = at < stop
                values[self.valid.id] = (begin <= at) & (at < stop)
            else:
                values[self.valid.id] = begin == at
        return np.concatenate(
            [np.asarray(values[v.id], dtype=float).reshape(-1) for v in self._order]
        )

    def columns_of(self, nodes: IntArray) -> IntArray:
        """Columns of the first layer and layer counts of `nodes`; call after `lower`."""
        columns: list[int] = []
        at = 0
        for variable in self._order:
            if variable.id == self.first.id:
                columns += [at + int(i) for i in nodes]
            elif variable.id == self.holds.id:
                columns += [at + int(x) for x in np.flatnonzero(np.isin(self._owner, nodes))]
            at += variable.size
        return np.array(columns, dtype=np.int64)

    def unpack(self, run: MilpRun, chain: Any, inverse: Any) -> tuple[IntArray, IntArray]:
        """first and end by node, from HiGHS's answer by way of CVXPY."""
        self.problem.unpack_results(run.results, chain, inverse)
        return self.arrays()

    def arrays(self) -> tuple[IntArray, IntArray]:
        """first and end by node, from the values that the variables have now."""
        first = np.rint(np.asarray(self.first.value)).astype(np.int64)
        chosen = np.rint(np.asarray(self.holds.value))
        layers = np.bincount(self._owner, weights=chosen * self._count, minlength=len(first))
        return first, first + np.rint(layers).astype(np.int64)

    def solve_with_scip(self, limit_s: float, rel_gap: float) -> tuple[bool, bool]:
        """Solve with SCIP through CVXPY: (found a solution, proven optimal to the gap).

        SolverMissing without PySCIPOpt. No progress and no start: CVXPY passes neither to SCIP.
        """
        if "SCIP" not in cp.installed_solvers():  # type: ignore[no-untyped-call]
            raise SolverMissing(
                "SCIP is not installed: install pyscipopt, or take solver=highs", param="solver"
            )
        self.problem.solve(  # type: ignore[no-untyped-call]
            solver=cp.SCIP, scip_params={"limits/time": limit_s, "limits/gap": rel_gap}
        )
        return self.first.value is not None, self.problem.status == cp.OPTIMAL


def _incidence(
    owners: IntArray, size: int, values: FloatArray | IntArray | None = None
) -> csr_array:
    """(size, len(owners)) with 1, or a value, where an entry belongs to a node."""
    entries = np.ones(len(owners)) if values is None else values.astype(float)
    return csr_array((entries, (owners, np.arange(len(owners)))), shape=(size, len(owners)))


def _scaled(values: FloatArray) -> csr_array:
    """The diagonal matrix of `values`."""
    at = np.arange(len(values))
    return csr_array((values, (at, at)), shape=(len(values), len(values)))
