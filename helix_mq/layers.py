"""Layer ranges, hops, routes and placements: the vocabulary of where layers run.

Ranges are half-open, `[first, end)`. All types are frozen and validate themselves, so that a
Route that exists is contiguous and covers the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from helix_mq.ids import NodeId

MAX_LAYERS = 1024
"""Sanity bound on the depth of a model; the deepest published Llama has 126 layers."""


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """Layers `first` up to, not including, `end`."""

    first: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.end <= MAX_LAYERS:
            raise ValueError(
                f"layer range [{self.first}, {self.end}) is empty, negative or above {MAX_LAYERS}"
            )

    def __len__(self) -> int:
        return self.end - self.first

    def __contains__(self, layer: int) -> bool:
        return self.first <= layer < self.end

    def covers(self, other: LayerRange) -> bool:
        return self.first <= other.first and other.end <= self.end

    def __str__(self) -> str:
        """Inclusive and in words people use: `layers 0-9`, `layer 7`."""
        if len(self) == 1:
            return f"layer {self.first}"
        return f"layers {self.first}-{self.end - 1}"


@dataclass(frozen=True, slots=True)
class Hop:
    """One stop of a request: `node` runs `layers` of it."""

    node: NodeId
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class Route:
    """The stamped way of one request through the cluster: contiguous hops from layer 0 on."""

    hops: tuple[Hop, ...]

    def __post_init__(self) -> None:
        if not self.hops:
            raise ValueError("a route needs at least one hop")
        at = 0
        for hop in self.hops:
            if hop.layers.first != at:
                raise ValueError(
                    f"hop on {hop.node} starts at layer {hop.layers.first}, expected {at}"
                )
            at = hop.layers.end

    @property
    def num_layers(self) -> int:
        return self.hops[-1].layers.end

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        return tuple(hop.node for hop in self.hops)

    def __str__(self) -> str:
        return " > ".join(f"{h.node}[{h.layers.first}:{h.layers.end}]" for h in self.hops)


def uncovered(num_layers: int, ranges: Iterable[LayerRange]) -> tuple[LayerRange, ...]:
    """The layers of a model that no range holds, as maximal ranges in order."""
    missing: list[LayerRange] = []
    at = 0
    for r in sorted(ranges):
        if r.first > at:
            missing.append(LayerRange(at, min(r.first, num_layers)))
        at = max(at, r.end)
        if at >= num_layers:
            break
    if at < num_layers:
        missing.append(LayerRange(at, num_layers))
    return tuple(missing)


@dataclass(frozen=True, slots=True)
class Placement:
    """Which layers each node holds. Slices may overlap; a route may use part of one.

    A node without layers is absent from `slices`.
    """

    num_layers: int
    slices: Mapping[NodeId, LayerRange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.num_layers <= MAX_LAYERS:
            raise ValueError(f"num_layers={self.num_layers} is not in 1..{MAX_LAYERS}")
        for node, layers in self.slices.items():
            if layers.end > self.num_layers:
                raise ValueError(f"{node} holds {layers}, but the model has {self.num_layers}")

    def __iter__(self) -> Iterator[NodeId]:
        return iter(sorted(self.slices))

    def missing(self) -> tuple[LayerRange, ...]:
        return uncovered(self.num_layers, self.slices.values())


def describe_ranges(ranges: Iterable[LayerRange]) -> str:
    """`layers 0-3 and 12-17` from ranges; used in every message about missing layers."""
    texts = [str(r).split(" ", 1)[1] for r in ranges]
    if not texts:
        return "no layers"
    if len(texts) == 1:
        return ("layer " if "-" not in texts[0] else "layers ") + texts[0]
    return "layers " + ", ".join(texts[:-1]) + " and " + texts[-1]
