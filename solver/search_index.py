"""A Problem as arrays: rates by layers held, link capacities in tokens/s, equal nodes as classes.

Built once per problem and read by every method; nothing here decides anything. Node order is by
name, so that equal problems give equal arrays. Nodes that cannot hold a layer, or have no way in or
out, are left out: no placement can use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.problem import SINK, SOURCE, Problem, ProblemNode

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NodeClass:
    """Nodes with the same table and region: they may be exchanged where links do not bind.

    `rates[k-1]` is tokens/s when holding k layers; `members` are indices into the ProblemIndex.
    """

    type_name: str
    region: str
    rates: tuple[float, ...]
    members: tuple[int, ...]

    @property
    def max_layers(self) -> int:
        return len(self.rates)


class ProblemIndex:
    """The arrays of one problem. Rates are tokens/s; `link[i, j]` is what i can send to j."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.num_layers = problem.num_layers
        every = sorted(problem.nodes, key=lambda n: n.name)
        source, sink, link = _capacities(problem, every)
        nic_in = np.array([n.nic_in_bytes_per_s for n in every], dtype=float)
        nic_out = np.array([n.nic_out_bytes_per_s for n in every], dtype=float)
        source = np.minimum(source, nic_in / problem.token_bytes)
        sink = np.minimum(sink, nic_out / problem.token_bytes)
        able = _connected(every, source, sink, link)
        keep = np.flatnonzero(able)
        self.nodes: tuple[ProblemNode, ...] = tuple(every[i] for i in keep)
        self.left_out: tuple[ProblemNode, ...] = tuple(every[i] for i in np.flatnonzero(~able))
        self.names: tuple[NodeId, ...] = tuple(n.name for n in self.nodes)
        self.source: FloatArray = source[keep]
        self.sink: FloatArray = sink[keep]
        self.link: FloatArray = link[np.ix_(keep, keep)]
        self.nic_in: FloatArray = nic_in[keep] / problem.activation_bytes
        self.nic_out: FloatArray = nic_out[keep] / problem.activation_bytes
        self.max_layers: IntArray = np.array(
            [min(n.max_layers, problem.num_layers) for n in self.nodes], dtype=np.int64
        )
        width = int(self.max_layers.max(initial=0))
        self.rate: FloatArray = np.zeros((len(self.nodes), width + 1))
        for i, node in enumerate(self.nodes):
            k = int(self.max_layers[i])
            self.rate[i, 1 : k + 1] = node.tokens_per_s_by_layers[:k]

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def peak(self) -> FloatArray:
        """The most each node can pass, whatever it holds."""
        peak: FloatArray = self.rate.max(axis=1, initial=0.0)
        return peak

    @cached_property
    def through(self) -> FloatArray:
        """The most each node's links and NICs let in and out, in tokens/s."""
        inward = self.source + np.minimum(self.nic_in, self.link.sum(axis=0))
        outward = self.sink + np.minimum(self.nic_out, self.link.sum(axis=1))
        through: FloatArray = np.minimum(inward, outward)
        return through

    @cached_property
    def wide(self) -> bool:
        """True if no link and no NIC can ever bind: each passes what its ends can compute."""
        ends = bool(np.all(self.source >= self.peak) and np.all(self.sink >= self.peak))
        return ends and self.wide_among(range(len(self)))

    def wide_among(self, members: Sequence[int]) -> bool:
        """True if no link between `members`, and no NIC of theirs, can ever bind."""
        at = np.array(members, dtype=np.int64)
        if not len(at):
            return True
        peak = self.peak[at]
        links = self.link[np.ix_(at, at)].copy()
        np.fill_diagonal(links, np.inf)
        nics = np.all(self.nic_in[at] >= peak) and np.all(self.nic_out[at] >= peak)
        return bool(nics and np.all(links >= np.minimum(peak[:, None], peak[None, :])))

    @cached_property
    def classes(self) -> tuple[NodeClass, ...]:
        """Nodes by (region, type, table), in order of their first member."""
        groups: dict[tuple[str, str, tuple[float, ...]], list[int]] = {}
        for i, node in enumerate(self.nodes):
            rates = node.tokens_per_s_by_layers[: int(self.max_layers[i])]
            groups.setdefault((node.region, node.type_name, rates), []).append(i)
        return tuple(
            NodeClass(type_name, region, rates, tuple(members))
            for (region, type_name, rates), members in groups.items()
        )

    def placement(self, first: IntArray, end: IntArray) -> Placement:
        """A Placement from arrays; nodes with end <= first hold nothing."""
        return Placement(
            self.num_layers,
            {
                name: LayerRange(int(a), int(b))
                for name, a, b in zip(self.names, first, end, strict=True)
                if b > a
            },
        )

    def arrays(self, placement: Placement) -> tuple[IntArray, IntArray]:
        """first and end by node; 0, 0 for nodes that hold nothing."""
        first = np.zeros(len(self), dtype=np.int64)
        end = np.zeros(len(self), dtype=np.int64)
        for i, name in enumerate(self.names):
            held = placement.slices.get(name)
            if held is not None:
                first[i], end[i] = held.first, held.end
        return first, end


def _capacities(
    problem: Problem, nodes: Sequence[ProblemNode]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    at = {node.name: i for i, node in enumerate(nodes)}
    source, sink = np.zeros(len(nodes)), np.zeros(len(nodes))
    link = np.zeros((len(nodes), len(nodes)))
    for k in problem.links:
        if k.src == SOURCE:
            source[at[k.dst]] = k.bytes_per_s / problem.token_bytes
        elif k.dst == SINK:
            sink[at[k.src]] = k.bytes_per_s / problem.token_bytes
        else:
            link[at[k.src], at[k.dst]] = k.bytes_per_s / problem.activation_bytes
    return source, sink, link


def _connected(
    nodes: Sequence[ProblemNode], source: FloatArray, sink: FloatArray, link: FloatArray
) -> NDArray[np.bool_]:
    """Nodes that compute, are reached from the router and reach it, through such nodes."""
    able: NDArray[np.bool_] = np.array(
        [n.max_layers > 0 and max(n.tokens_per_s_by_layers[: n.max_layers]) > 0 for n in nodes],
        dtype=bool,
    )
    joined = link > 0
    return _reached(able, source > 0, joined) & _reached(able, sink > 0, joined.T)


def _reached(
    able: NDArray[np.bool_], start: NDArray[np.bool_], joined: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    reached = able & start
    while True:
        more = able & (reached | joined[reached].any(axis=0))
        if np.array_equal(more, reached):
            return reached
        reached = more
