"""Checks a plan from scratch: layers, memory, links, flow. Shares no code with the planners.

The max flow is recomputed as a linear programme (scipy's HiGHS), not with the graph of
`solver.flow`; a given flow is checked edge by edge. Every plan passes through here, whoever made
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from helix_mq.errors import LocalError
from helix_mq.ids import NodeId
from helix_mq.layers import Placement, describe_ranges
from solver.flow import FlowSolution
from solver.problem import SINK, SOURCE, Problem

REL_TOLERANCE = 1e-6


class VerificationError(LocalError):
    """A plan does not hold what it claims; the message lists every fault."""

    code = "plan_not_valid"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """`tokens_per_s` is the verifier's own figure; `faults` are sentences, empty if none."""

    tokens_per_s: float
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.faults


@dataclass(frozen=True, slots=True)
class _Edge:
    src: NodeId
    dst: NodeId
    tokens_per_s: float


def verify(
    problem: Problem,
    placement: Placement,
    *,
    claimed_tokens_per_s: float | None = None,
    flow: FlowSolution | None = None,
    partial_inference: bool = True,
) -> VerifyReport:
    """Every fault of a plan, in words, and the max flow as recomputed here."""
    faults = _placement_faults(problem, placement)
    if faults:
        return VerifyReport(0.0, tuple(faults))
    edges = _edges(problem, placement, partial_inference)
    value = _max_flow(problem, placement, edges)
    if claimed_tokens_per_s is not None and not _close(claimed_tokens_per_s, value):
        faults.append(f"claims {claimed_tokens_per_s:.6f} tokens/s, but passes {value:.6f}")
    if flow is not None:
        faults += _flow_faults(problem, placement, edges, flow, value)
    return VerifyReport(value, tuple(faults))


def require_valid(report: VerifyReport, what: str) -> None:
    """VerificationError if the report has faults."""
    if report.faults:
        raise VerificationError(f"{what}: " + "; ".join(report.faults))


def _placement_faults(problem: Problem, placement: Placement) -> list[str]:
    faults = []
    if placement.num_layers != problem.num_layers:
        faults.append(
            f"the placement is for {placement.num_layers} layers, the model has "
            f"{problem.num_layers}"
        )
    room = {node.name: node.max_layers for node in problem.nodes}
    for name in placement:
        held = placement.slices[name]
        if name not in room:
            faults.append(f"{name} holds {held}, but the cluster has no such node")
        elif held.end - held.first > room[name]:
            faults.append(f"{name} holds {held}, but has room for {room[name]} layers")
    missing = placement.missing()
    if missing:
        faults.append(f"no node holds {describe_ranges(missing)}")
    return faults


def _edges(problem: Problem, placement: Placement, partial: bool) -> list[_Edge]:
    """Usable links with their own capacities, from the definition."""
    held = {name: (r.first, r.end) for name, r in placement.slices.items()}
    edges = []
    for link in problem.links:
        if link.src == SOURCE:
            fits = held.get(link.dst, (-1, -1))[0] == 0
        elif link.dst == SINK:
            fits = held.get(link.src, (-1, -1))[1] == problem.num_layers
        elif link.src in held and link.dst in held:
            at, (first, end) = held[link.src][1], held[link.dst]
            fits = (first <= at < end) if partial else first == at
        else:
            fits = False
        if fits and link.bytes_per_s > 0:
            ends = (link.src, link.dst)
            router = SOURCE in ends or SINK in ends
            size = problem.token_bytes if router else problem.activation_bytes
            edges.append(_Edge(link.src, link.dst, link.bytes_per_s / size))
    return edges


def _max_flow(problem: Problem, placement: Placement, edges: list[_Edge]) -> float:
    """Maximise what leaves the source: one variable per edge, rows for balance and rates."""
    if not edges:
        return 0.0
    nodes = {n.name: n for n in problem.nodes if n.name in placement.slices}
    rates = _rates(problem, placement)
    order = {name: i for i, name in enumerate(rates)}
    size = len(order)
    balance: list[tuple[int, int, float]] = []
    limits: list[tuple[int, int, float]] = []
    upper, objective = np.zeros(len(edges)), np.zeros(len(edges))
    for x, edge in enumerate(edges):
        most = [edge.tokens_per_s]
        if edge.src == SOURCE:
            objective[x] = -1.0
            most.append(nodes[edge.dst].nic_in_bytes_per_s / problem.token_bytes)
        else:
            balance.append((order[edge.src], x, -1.0))
            most.append(rates[edge.src])
            if edge.dst == SINK:
                most.append(nodes[edge.src].nic_out_bytes_per_s / problem.token_bytes)
            else:
                limits.append((2 * size + order[edge.src], x, 1.0))
        if edge.dst != SINK:
            balance.append((order[edge.dst], x, 1.0))
            limits.append((order[edge.dst], x, 1.0))
            most.append(rates[edge.dst])
            if edge.src != SOURCE:
                limits.append((size + order[edge.dst], x, 1.0))
        upper[x] = min(most)
    nic_in = [nodes[n].nic_in_bytes_per_s / problem.activation_bytes for n in order]
    nic_out = [nodes[n].nic_out_bytes_per_s / problem.activation_bytes for n in order]
    answer = linprog(
        objective,
        A_ub=_matrix(limits, 3 * size, len(edges)),
        b_ub=np.array([*rates.values(), *nic_in, *nic_out]),
        A_eq=_matrix(balance, size, len(edges)),
        b_eq=np.zeros(size),
        bounds=np.column_stack([np.zeros(len(edges)), upper]),
        method="highs",
    )
    if answer.status != 0:
        raise VerificationError(f"the verifier's linear programme failed: {answer.message}")
    return max(0.0, -float(answer.fun))


def _matrix(entries: list[tuple[int, int, float]], rows: int, cols: int) -> coo_array:
    at, to, values = zip(*entries, strict=True) if entries else ((), (), ())
    return coo_array((np.array(values, dtype=float), (at, to)), shape=(rows, cols)).tocsr()


def _rates(problem: Problem, placement: Placement) -> dict[NodeId, float]:
    """What each node that holds layers computes, by name in order."""
    nodes = {node.name: node for node in problem.nodes}
    return {
        name: nodes[name].tokens_per_s_by_layers[len(placement.slices[name]) - 1]
        for name in placement
    }


def _flow_faults(
    problem: Problem,
    placement: Placement,
    edges: list[_Edge],
    flow: FlowSolution,
    value: float,
) -> list[str]:
    """Where a flow breaks a capacity, loses tokens, or is not what it says."""
    faults = []
    capacity = {(e.src, e.dst): e.tokens_per_s for e in edges}
    into: dict[NodeId, list[float]] = {}
    out: dict[NodeId, list[float]] = {}
    for edge in flow.edges:
        most = capacity.get((edge.src, edge.dst), 0.0)
        if edge.tokens_per_s < 0 or edge.tokens_per_s > most * (1 + REL_TOLERANCE):
            faults.append(
                f"{edge.src} -> {edge.dst} carries {edge.tokens_per_s:.6f} tokens/s, "
                f"but can carry {most:.6f}"
            )
        out.setdefault(edge.src, []).append(edge.tokens_per_s)
        into.setdefault(edge.dst, []).append(edge.tokens_per_s)
    for name, rate in _rates(problem, placement).items():
        enters, leaves = math.fsum(into.get(name, [])), math.fsum(out.get(name, []))
        if not _close(enters, leaves):
            faults.append(f"{name} gets {enters:.6f} tokens/s and passes on {leaves:.6f}")
        if enters > rate * (1 + REL_TOLERANCE):
            faults.append(f"{name} gets {enters:.6f} tokens/s, but computes {rate:.6f}")
    sent = math.fsum(out.get(SOURCE, []))
    if not (_close(sent, value) and _close(flow.tokens_per_s, value)):
        faults.append(
            f"the flow says {flow.tokens_per_s:.6f} and sends {sent:.6f} tokens/s; "
            f"the most is {value:.6f}"
        )
    return faults


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=REL_TOLERANCE, abs_tol=1e-6)
