"""A planning problem: nodes with measured or estimated speeds, links, and the model to place.

Plain numbers, all in bytes, seconds and tokens per second. Where they come from (catalogue, tables,
the reference's files, a live cluster) is somebody else's business. A Problem that exists is
consistent: names are unique, links have known ends, tables are long enough, numbers are finite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import MAX_LAYERS

SOURCE: Final = NodeId("@source")
SINK: Final = NodeId("@sink")
"""Both are the router: where tokens start and where they come back to."""

MAX_TOKENS_PER_S: Final = 1e12
MAX_KV_TOKENS: Final = 1e18
MAX_BYTES_PER_S: Final = 1e18
MAX_BYTES: Final = 2**60
"""Of memory, or of one token's activations. All far beyond any machine: more is a slip in a unit,
and would overflow what is computed from it."""
MAX_LATENCY_S: Final = 3600.0


class ProblemError(ConfigError):
    """A problem contradicts itself; `param` names the field."""

    code = "invalid_problem"


@dataclass(frozen=True, slots=True)
class ProblemNode:
    """One machine. Index k-1 of the tables is for holding k layers; `max_layers` of them.

    `max_layers` may be 0: a machine too small for one layer, which is then never used.
    `kv_tokens_by_layers` counts token-layers for the whole node (room for tokens, times layers
    held); it may be empty where KV room is unknown.
    """

    name: NodeId
    type_name: str
    region: str
    max_layers: int
    tokens_per_s_by_layers: tuple[float, ...]
    kv_tokens_by_layers: tuple[float, ...]
    nic_in_bytes_per_s: float
    nic_out_bytes_per_s: float
    vram_bytes: int

    def __post_init__(self) -> None:
        where = f"node {self.name}"
        if self.name in (SOURCE, SINK) or not self.name:
            raise ProblemError(f"{where}: this name is the router's or empty", param="name")
        if not 0 <= self.max_layers <= MAX_LAYERS:
            raise ProblemError(
                f"{where}: max_layers={self.max_layers} is not in 0..{MAX_LAYERS}",
                param="max_layers",
            )
        if len(self.tokens_per_s_by_layers) < self.max_layers:
            raise ProblemError(
                f"{where}: tokens_per_s_by_layers has {len(self.tokens_per_s_by_layers)} entries, "
                f"but max_layers={self.max_layers}: give one figure per number of layers",
                param="tokens_per_s_by_layers",
            )
        tokens_per_s, kv_tokens = self.tokens_per_s_by_layers, self.kv_tokens_by_layers
        _within(where, "tokens_per_s_by_layers", tokens_per_s, MAX_TOKENS_PER_S)
        _within(where, "kv_tokens_by_layers", kv_tokens, MAX_KV_TOKENS)
        _within(where, "nic_in_bytes_per_s", (self.nic_in_bytes_per_s,), MAX_BYTES_PER_S)
        _within(where, "nic_out_bytes_per_s", (self.nic_out_bytes_per_s,), MAX_BYTES_PER_S)
        _within(where, "vram_bytes", (self.vram_bytes,), MAX_BYTES)

    def tokens_per_s(self, layers: int) -> float:
        """Throughput when holding `layers` layers."""
        return self.tokens_per_s_by_layers[layers - 1]

    def kv_tokens(self, layers: int) -> float | None:
        """Token-layers of KV room when holding `layers` layers; None where unknown."""
        if len(self.kv_tokens_by_layers) < layers:
            return None
        return self.kv_tokens_by_layers[layers - 1]


@dataclass(frozen=True, slots=True)
class ProblemLink:
    """One directed link; `src` may be SOURCE, `dst` may be SINK. Zero bandwidth: no link."""

    src: NodeId
    dst: NodeId
    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Problem:
    """`token_bytes` travel to and from the router, `activation_bytes` per token between nodes."""

    name: str
    num_layers: int
    token_bytes: int
    activation_bytes: int
    nodes: tuple[ProblemNode, ...]
    links: tuple[ProblemLink, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.num_layers <= MAX_LAYERS:
            raise ProblemError(
                f"num_layers={self.num_layers} is not in 1..{MAX_LAYERS}", param="num_layers"
            )
        for field in ("token_bytes", "activation_bytes"):
            value = getattr(self, field)
            if not 1 <= value <= MAX_BYTES:
                # Python refuses to print whole numbers of thousands of digits.
                shown = "a number beyond that" if value > MAX_BYTES else str(value)
                raise ProblemError(f"{field} must be in 1..2^60, not {shown}", param=field)
        names = {node.name for node in self.nodes}
        if len(names) < len(self.nodes):
            twice = min(n for n, times in Counter(n.name for n in self.nodes).items() if times > 1)
            raise ProblemError(f"node {twice} is named twice; give it another name", param="nodes")
        _check_links(names, self.links)

    def node(self, name: NodeId) -> ProblemNode:
        """The node of that name; ProblemError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise ProblemError(f"no node is called {name}", param="node")

    def without(self, names: Iterable[NodeId]) -> Problem:
        """The same problem less some nodes and their links."""
        gone = frozenset(names)
        for name in sorted(gone):
            self.node(name)
        return replace(
            self,
            nodes=tuple(n for n in self.nodes if n.name not in gone),
            links=tuple(k for k in self.links if k.src not in gone and k.dst not in gone),
        )


def _check_links(names: set[NodeId], links: tuple[ProblemLink, ...]) -> None:
    seen: set[tuple[NodeId, NodeId]] = set()
    for link in links:
        ends = (link.src, link.dst)
        if (link.src not in names and link.src != SOURCE) or (
            link.dst not in names and link.dst != SINK
        ):
            raise ProblemError(
                f"link {link.src} -> {link.dst}: both ends must be nodes, or the router "
                f"({SOURCE} as source, {SINK} as sink)",
                param="links",
            )
        if link.src == link.dst or ends in seen or ends == (SOURCE, SINK):
            raise ProblemError(
                f"link {link.src} -> {link.dst} is a loop, or is given twice", param="links"
            )
        seen.add(ends)
        # Not by _within: a large cluster has a million of them.
        if not (0 <= link.bytes_per_s <= MAX_BYTES_PER_S and 0 <= link.latency_s <= MAX_LATENCY_S):
            raise ProblemError(
                f"link {link.src} -> {link.dst}: bytes_per_s={link.bytes_per_s} must be finite, "
                f"not negative and at most {MAX_BYTES_PER_S:g}, latency_s={link.latency_s} at "
                f"most {MAX_LATENCY_S:g}: check the units",
                param="links",
            )


def _within(where: str, field: str, values: tuple[float, ...], most: float) -> None:
    for value in values:
        if not 0 <= value <= most:  # NaN is neither
            shown = f"more than {most:g}" if value > most else f"{value}"
            raise ProblemError(
                f"{where}: {field} holds {shown}; it must be finite, not negative and at most "
                f"{most:g}: check the units",
                param=field,
            )
