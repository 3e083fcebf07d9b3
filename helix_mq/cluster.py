"""A cluster in words: machines, where they are, how they are linked. Read from and written to TOML.

    name = "two-regions"
    router = "eu"                                # the router's region

    [[nodes]]
    name = "a100"                                # a100-0, a100-1, ... when count > 1
    type = "A100"                                # of the GPU catalogue
    count = 2
    region = "eu"

    [[nodes]]
    name = "t4"
    type = "T4"
    region = "us"
    nic = "10 Gbit/s"
    tables = "t4.csv"                            # measured step times, instead of the catalogue
    quantise = "int4"                            # weights in fewer bits: more layers fit

    [[links]]                                    # both ways, between or within regions
    between = ["eu", "us"]
    bandwidth = "100 Mbit/s"
    latency = "40 ms"

    [[paths]]                                    # one direction, between two machines
    from = "a100-0"
    to = "t4"
    bandwidth = "50 Mbit/s"
    latency = "60 ms"

A path overrides a link; `@router` is the router's end of a path. Without a link between two regions
there is no way between their machines. Within a region `DEFAULT_LOCAL` holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from helix_mq.errors import ConfigError
from helix_mq.ids import ROUTER, NodeId
from helix_mq.models.quantisation import Quantisation
from helix_mq.settings import describe, first_field, read_toml
from helix_mq.units import (
    bits_per_s,
    num_bytes,
    seconds,
    show_bits_per_s,
    show_bytes,
    show_seconds,
)

MAX_NODES = 4096
MAX_BITS_PER_S = 8e18
MAX_LATENCY_S = 3600.0
MAX_VRAM_BYTES = 2**60
"""What the planner computes with (solver.problem), asked here where the file's field is known."""


def _bandwidth(text: object) -> float:
    return _at_most(bits_per_s(text), MAX_BITS_PER_S, show_bits_per_s(MAX_BITS_PER_S))


def _latency(text: object) -> float:
    return _at_most(seconds(text), MAX_LATENCY_S, show_seconds(MAX_LATENCY_S))


def _size(text: object) -> int:
    return int(_at_most(num_bytes(text), MAX_VRAM_BYTES, f"{MAX_VRAM_BYTES:.3g} B"))


def _at_most(value: float, most: float, shown: str) -> float:
    if value > most:
        raise ValueError(f"more than {shown}, which is beyond any machine: check the unit")
    return value


Bandwidth = Annotated[float, BeforeValidator(_bandwidth)]
Latency = Annotated[float, BeforeValidator(_latency)]
Size = Annotated[int, BeforeValidator(_size)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,55}$")]
End = Annotated[str, StringConstraints(pattern=r"^(@router|[A-Za-z0-9][A-Za-z0-9._-]{0,63})$")]


class ClusterError(ConfigError):
    """A cluster file contradicts itself; the message names the field."""

    code = "invalid_cluster"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class NodeEntry(_Table):
    name: Name
    type: str = Field(min_length=1, max_length=64)
    count: int = Field(1, ge=1, le=MAX_NODES)
    region: Name
    vram: Size | None = None
    nic: Bandwidth = 80e9
    tables: Path | None = None
    quantise: Quantisation = Quantisation.NONE


class LinkEntry(_Table):
    between: tuple[Name, Name]
    bandwidth: Bandwidth
    latency: Latency


class PathEntry(_Table):
    source: End = Field(alias="from")
    target: End = Field(alias="to")
    bandwidth: Bandwidth
    latency: Latency


class _File(_Table):
    name: Name
    router: Name
    nodes: tuple[NodeEntry, ...] = Field(min_length=1)
    links: tuple[LinkEntry, ...] = ()
    paths: tuple[PathEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """`bits_per_s` and one-way `latency_s`."""

    bits_per_s: float
    latency_s: float


DEFAULT_LOCAL = Link(8e9, 0.001)
"""Within a region: what the published clusters assume (1e9 bytes/s, 1 ms)."""


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """One machine. `vram_bytes` None takes the catalogue's; `tables` replace its step times."""

    name: NodeId
    type_name: str
    region: str
    vram_bytes: int | None
    nic_bits_per_s: float
    tables: Path | None
    quantise: Quantisation = Quantisation.NONE


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines by name, and the link between any two ends, if there is one."""

    name: str
    router_region: str
    nodes: tuple[ClusterNode, ...]
    regions: Mapping[tuple[str, str], Link]
    paths: Mapping[tuple[NodeId, NodeId], Link]
    _region_of: Mapping[NodeId, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A thousand nodes have a million links to ask for.
        object.__setattr__(self, "_region_of", {n.name: n.region for n in self.nodes})

    def link(self, source: NodeId, target: NodeId) -> Link | None:
        """From one end to another; `ROUTER` names the router. None: no way."""
        path = self.paths.get((source, target))
        if path is not None:
            return path if path.bits_per_s > 0 else None
        a, b = self._region(source), self._region(target)
        link = self.regions.get((a, b)) or self.regions.get((b, a))
        if link is None and a == b:
            return DEFAULT_LOCAL
        return link if link is not None and link.bits_per_s > 0 else None

    def region_names(self) -> list[str]:
        return sorted({n.region for n in self.nodes} | {self.router_region})

    def _region(self, end: NodeId) -> str:
        if end == ROUTER:
            return self.router_region
        return self._region_of[end]


def read_cluster(path: Path) -> Cluster:
    """A cluster file. ClusterError names the file, the field and the value."""
    return parse_cluster(read_toml(path), str(path), path.parent)


def parse_cluster(values: Mapping[str, Any], source: str, folder: Path) -> Cluster:
    """From parsed TOML; relative paths of tables are taken from `folder`."""
    try:
        file = _File.model_validate(dict(values))
    except ValidationError as e:
        raise ClusterError(f"{source}: {describe(e)}", param=first_field(e)) from None
    nodes: dict[NodeId, ClusterNode] = {}
    for entry in file.nodes:
        for i in range(entry.count):
            name = NodeId(f"{entry.name}-{i}" if entry.count > 1 else entry.name)
            if name in nodes:
                raise ClusterError(f"{source}: two nodes are called {name}", param="nodes.name")
            tables = folder / entry.tables if entry.tables is not None else None
            nodes[name] = ClusterNode(
                *(name, entry.type, entry.region, entry.vram, entry.nic, tables, entry.quantise)
            )
    if len(nodes) > MAX_NODES:
        raise ClusterError(f"{source}: {len(nodes)} nodes, at most {MAX_NODES}", param="nodes")
    known = {n.region for n in nodes.values()} | {file.router}
    regions: dict[tuple[str, str], Link] = {}
    for link in file.links:
        for region in link.between:
            if region not in known:
                raise ClusterError(
                    f"{source}: links.between names region {region!r}, which has no node",
                    param="links.between",
                )
        pair = (min(link.between), max(link.between))
        if pair in regions:
            raise ClusterError(f"{source}: two links between {pair}", param="links.between")
        regions[pair] = Link(link.bandwidth, link.latency)
    paths: dict[tuple[NodeId, NodeId], Link] = {}
    for path in file.paths:
        for end in (path.source, path.target):
            if end != ROUTER and end not in nodes:
                raise ClusterError(f"{source}: paths: there is no node {end!r}", param="paths")
        paths[NodeId(path.source), NodeId(path.target)] = Link(path.bandwidth, path.latency)
    return Cluster(file.name, file.router, tuple(nodes.values()), regions, paths)


def write_cluster(cluster: Cluster) -> str:
    """TOML that `parse_cluster` reads back to the same cluster."""
    lines = [f'name = "{cluster.name}"', f'router = "{cluster.router_region}"']
    for node in cluster.nodes:
        lines += ["", "[[nodes]]", f'name = "{node.name}"', f'type = "{node.type_name}"']
        lines.append(f'region = "{node.region}"')
        if node.vram_bytes is not None:
            lines.append(f'vram = "{show_bytes(node.vram_bytes)}"')
        lines.append(f'nic = "{show_bits_per_s(node.nic_bits_per_s)}"')
        if node.tables is not None:
            lines.append(f'tables = "{node.tables}"')
        if node.quantise is not Quantisation.NONE:
            lines.append(f'quantise = "{node.quantise}"')
    for (a, b), link in sorted(cluster.regions.items()):
        lines += ["", "[[links]]", f'between = ["{a}", "{b}"]', *_speed(link)]
    for (source, target), link in sorted(cluster.paths.items()):
        lines += ["", "[[paths]]", f'from = "{source}"', f'to = "{target}"', *_speed(link)]
    return "\n".join(lines) + "\n"


def _speed(link: Link) -> list[str]:
    return [
        f'bandwidth = "{show_bits_per_s(link.bits_per_s)}"',
        f'latency = "{show_seconds(link.latency_s)}"',
    ]
