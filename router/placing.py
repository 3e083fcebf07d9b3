"""Which layers each node is to hold. Pure; one interface for fixed, proportional and planned.

`Placer.place` is asked whenever membership changes and answers with slices for nodes that may be
assigned now. The fixed placer follows the settings file; the proportional one waits until the
expected number of nodes is there and then splits by memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation, WeightForm


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered node as a placer sees it."""

    name: NodeId
    memory_bytes: int
    dtype_bytes: int
    measured: bool = False
    quantise: Quantisation = Quantisation.NONE

    @property
    def form(self) -> WeightForm:
        return WeightForm(self.dtype_bytes, self.quantise)


class Placer(Protocol):
    def place(self, nodes: Sequence[Candidate]) -> Mapping[NodeId, LayerRange]:
        """Slices for those of `nodes` that are to hold layers now; others wait."""
        ...

    def waiting_for(self, nodes: Sequence[Candidate]) -> str:
        """In words, what the placement still waits for; empty if nothing."""
        ...

    def adopt(self, slices: Mapping[NodeId, LayerRange]) -> None:
        """From now on these are the slices, whatever the placer thought before."""
        ...

    def wants_plan(self, nodes: Sequence[Candidate]) -> bool:
        """Nothing is placed yet, all are here that are expected, and a plan would be welcome."""
        ...

    def fall_back(self) -> None:
        """No plan could be made: the placer is to do without."""
        ...


class FixedPlacer:
    """Slices by node name, from the settings."""

    def __init__(self, placement: Placement) -> None:
        missing = placement.missing()
        if missing:
            first = missing[0]
            raise ConfigError(
                f"placement.nodes: {first} is held by no node; extend a slice to cover it",
                param="placement.nodes",
            )
        self._placement = placement

    def place(self, nodes: Sequence[Candidate]) -> Mapping[NodeId, LayerRange]:
        slices = self._placement.slices
        return {n.name: slices[n.name] for n in nodes if n.name in slices}

    def waiting_for(self, nodes: Sequence[Candidate]) -> str:
        here = {n.name for n in nodes}
        absent = [name for name in self._placement if name not in here]
        return f"node {', '.join(absent)} to join" if absent else ""

    def adopt(self, slices: Mapping[NodeId, LayerRange]) -> None:
        self._placement = Placement(self._placement.num_layers, dict(slices))

    def wants_plan(self, nodes: Sequence[Candidate]) -> bool:
        return False

    def fall_back(self) -> None:
        """It never waits for a plan."""


class ProportionalPlacer:
    """Splits the layers by memory, once `nodes_expected` nodes are there; keeps the split.

    With `planned` it waits for a plan instead (`adopt`), if all nodes have measured themselves, and
    splits only where none can be made. A node that joins later takes over the slice of one that has
    gone, if its memory allows.
    """

    def __init__(self, config: ModelConfig, nodes_expected: int, *, planned: bool = False) -> None:
        self._config = config
        self._expected = nodes_expected
        self._slices: dict[NodeId, LayerRange] = {}
        self._planned = planned

    def wants_plan(self, nodes: Sequence[Candidate]) -> bool:
        return (
            self._planned
            and not self._slices
            and len(nodes) >= self._expected
            and all(n.measured for n in nodes)
        )

    def adopt(self, slices: Mapping[NodeId, LayerRange]) -> None:
        self._slices = dict(slices)

    def fall_back(self) -> None:
        self._planned = False

    def place(self, nodes: Sequence[Candidate]) -> Mapping[NodeId, LayerRange]:
        if not self._slices:
            if len(nodes) < self._expected or self.wants_plan(nodes):
                return {}
            self._slices = split_by_memory(self._config, nodes)
        here = {n.name for n in nodes}
        vacant = [name for name in sorted(self._slices) if name not in here]
        for spare in sorted((n for n in nodes if n.name not in self._slices), key=_by_memory):
            for gone in vacant:
                layers = self._slices[gone]
                if slice_bytes(self._config, layers, spare.form) <= spare.memory_bytes:
                    self._slices[spare.name] = self._slices.pop(gone)
                    vacant.remove(gone)
                    break
        return {name: layers for name, layers in self._slices.items() if name in here}

    def waiting_for(self, nodes: Sequence[Candidate]) -> str:
        if self._slices:
            here = {n.name for n in nodes}
            absent = [name for name in sorted(self._slices) if name not in here]
            return f"node {', '.join(absent)} to come back" if absent else ""
        more = self._expected - len(nodes)
        if more <= 0:
            return "the planner" if self.wants_plan(nodes) else ""
        return f"{more} more node{'s' if more > 1 else ''} to join"


def _by_memory(node: Candidate) -> tuple[int, NodeId]:
    return (-node.memory_bytes, node.name)


def slice_bytes(config: ModelConfig, layers: LayerRange, form: WeightForm) -> int:
    """Weights of a slice as a node holds them."""
    return form.slice_bytes(config, layers)


KV_SHARE = 0.25
"""Least share of a node's memory kept for KV cache when layers are split by memory."""


def split_by_memory(config: ModelConfig, nodes: Sequence[Candidate]) -> dict[NodeId, LayerRange]:
    """Contiguous slices, as many layers per node as its share of the memory, largest first.

    Raises ConfigError in words when the model does not fit.
    """
    order = sorted(nodes, key=_by_memory)
    total = sum(n.memory_bytes for n in order)
    if total <= 0:
        raise ConfigError("no node offers memory: set `memory` in their settings", param="memory")
    counts = _whole_shares([n.memory_bytes / total for n in order], config.num_layers)
    _relieve(config, order, counts)
    slices = _slices(order, counts)
    for node in order:
        if node.name in slices and _room_bytes(config, node, slices) < 0:
            layers = slices[node.name]
            need = slice_bytes(config, layers, node.form)
            raise ConfigError(
                f"{layers} need {need / 2**20:.1f} MiB of weights, but {node.name} has "
                f"{node.memory_bytes / 2**20:.1f} MiB, of which a quarter is kept for KV cache: "
                "add nodes or memory",
                param="placement",
            )
    return slices


def _slices(order: Sequence[Candidate], counts: Sequence[int]) -> dict[NodeId, LayerRange]:
    """The layers in order, so many to each; nodes with none are absent."""
    slices: dict[NodeId, LayerRange] = {}
    at = 0
    for node, count in zip(order, counts, strict=True):
        if count:
            slices[node.name] = LayerRange(at, at + count)
            at += count
    return slices


def _room_bytes(config: ModelConfig, node: Candidate, slices: Mapping[NodeId, LayerRange]) -> float:
    """What a node has left for weights beside its slice; negative when it is overfull."""
    layers = slices.get(node.name)
    need = slice_bytes(config, layers, node.form) if layers is not None else 0
    return node.memory_bytes * (1 - KV_SHARE) - need


def _relieve(config: ModelConfig, order: Sequence[Candidate], counts: list[int]) -> None:
    """Moves layers off nodes that they overfill, in place, as far as others have room.

    Shares count layers, but the ends also hold embedding and head, which may be worth several.
    """
    for _ in range(config.num_layers):
        slices = _slices(order, counts)
        rooms = [_room_bytes(config, node, slices) for node in order]
        fullest = min(range(len(order)), key=lambda i: (rooms[i], i))
        roomiest = max(range(len(order)), key=lambda i: (rooms[i], -i))
        layer_bytes = order[roomiest].form.layer_bytes(config)
        if rooms[fullest] >= 0 or rooms[roomiest] < layer_bytes:
            return
        counts[fullest] -= 1
        counts[roomiest] += 1


def _whole_shares(shares: Sequence[float], items: int) -> list[int]:
    """Whole numbers summing to `items`, nearest to the shares (largest remainder method)."""
    exact = [share * items for share in shares]
    counts = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: items - sum(counts)]:
        counts[i] += 1
    return counts
