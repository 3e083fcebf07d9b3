"""To and from the reference artifact's ini files: a Cluster, and a Placement on it.

A Cluster comes from two files, cluster and machine profile; a Placement from a solution file
(`compute_node_5=[0, 1, 2]`: node 3 holds layers 0-2). Node numbers are names: node 3 is "3", as in
the JSON extraction of the same clusters.

**Units.** The artifact's `gbps` counts 1e9 *bytes* per second (`reference_ini_text`). A Cluster
counts bits per second, so figures are multiplied by 8 on the way in and divided on the way out.
What a Cluster has no place for is left out: disk speed, the coordinator's NIC, and of two different
NIC directions the faster.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from helix_mq.cluster import Cluster, ClusterNode, Link
from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import MAX_LAYERS, LayerRange, Placement
from solver.reference_ini_cluster import (
    SINK_END,
    SINK_NODE,
    SOURCE_END,
    SOURCE_NODE,
    End,
    IniCluster,
    IniLink,
    MachineProfile,
    read_cluster_file,
    read_machine_profiles,
)
from solver.reference_ini_simulator import (
    DEFAULT_DISK_BYTES_PER_S,
    DEFAULT_NIC_BYTES_PER_S,
    FIRST_NUMBER,
    simulator_name,
)
from solver.reference_ini_text import (
    IniFile,
    ReferenceIniError,
    parse_ini,
    read_ini,
    show_list,
    show_section,
)
from solver.reference_json import LOCAL_LATENCY_S, node_name

BITS_PER_BYTE = 8
MAX_OFFSET = 1_000
ROUTER_REGION = "router"
"""Where the router is when no node is near it."""

_SOLUTION_KEY = re.compile(r"compute_node_([0-9]{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True)
class IniExport:
    """What a Cluster becomes: both files' contents, and the number of each node."""

    cluster: IniCluster
    profiles: Mapping[str, MachineProfile]
    numbers: Mapping[NodeId, int]


def import_cluster(cluster_file: Path, profile_file: Path) -> Cluster:
    """The two files as a Cluster named after the first. ReferenceIniError."""
    ini, profiles = read_cluster_file(cluster_file), read_machine_profiles(profile_file)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", cluster_file.stem).strip("-._")[:56] or "cluster"
    return to_cluster(ini, profiles, name)


def to_cluster(ini: IniCluster, profiles: Mapping[str, MachineProfile], name: str) -> Cluster:
    """The same machines and the same links, none added.

    The files name no regions: nodes joined by links of at most LOCAL_LATENCY_S share one. Between
    two regions the commonest link stands for all, and paths say what differs from it; a pair
    without a link gets a path of no bandwidth where its regions would give it one.
    """
    nodes = []
    regions = _regions(ini)
    for i, kind in enumerate(ini.types):
        profile = profiles.get(kind)
        if profile is None or kind in (SOURCE_NODE, SINK_NODE):
            raise ReferenceIniError(
                f"[ComputeNode-{i}] type = {kind!r}: the machine profile has no such type",
                param=f"ComputeNode-{i}.type",
            )
        nic_in, nic_out = profile.nic_in_bytes_per_s, profile.nic_out_bytes_per_s
        if nic_in is None or nic_out is None or profile.vram_bytes is None:
            raise ReferenceIniError(f"[{kind}]: speeds and memory must be given", param=kind)
        nic = min(nic_in, nic_out) * BITS_PER_BYTE
        nodes.append(ClusterNode(node_name(i), kind, regions[i], profile.vram_bytes, nic, None))
    where = {node.name: node.region for node in nodes}
    where[ROUTER] = _router_region(ini, regions)
    links = {
        (a, b): link
        for a in where
        for b in where
        if a != b and (link := _link(ini, a, b)) is not None
    }
    between = _commonest(links, where)
    paths = {}
    for a in where:
        for b in where:
            usual = between.get((min(where[a], where[b]), max(where[a], where[b])))
            link = links.get((a, b))
            if a != b and link != usual:
                paths[a, b] = link or Link(0.0, 0.0)
    return Cluster(name, where[ROUTER], tuple(nodes), between, paths)


def export_cluster(cluster: Cluster) -> IniExport:
    """What the files can say of `cluster`.

    Numbers: the nodes' own names where these are 0, 1, 2 ...; else their order. ReferenceIniError
    where the format has no words: links that differ by direction, machines of one type that differ
    in memory or NIC, memory that is not given.
    """
    numbers = node_numbers([node.name for node in cluster.nodes])
    ordered = sorted(cluster.nodes, key=lambda n: numbers[n.name])
    profiles = {
        SOURCE_NODE: MachineProfile(None, DEFAULT_NIC_BYTES_PER_S, None, None),
        SINK_NODE: MachineProfile(DEFAULT_NIC_BYTES_PER_S, None, None, None),
    }
    for node in ordered:
        if node.vram_bytes is None:
            raise ReferenceIniError(
                f"node {node.name}: give its vram; a machine profile must say it", param="vram"
            )
        nic = node.nic_bits_per_s / BITS_PER_BYTE
        own = MachineProfile(nic, nic, DEFAULT_DISK_BYTES_PER_S, node.vram_bytes)
        if profiles.setdefault(node.type_name, own) != own:
            raise ReferenceIniError(
                f"node {node.name}: type {node.type_name} has another vram or nic elsewhere, or "
                "is the coordinator's name; there is one profile per type: give it its own type",
                param="type",
            )
    links: dict[tuple[End, End], IniLink] = {}
    for i, a in enumerate(ordered):
        _put(links, (SOURCE_END, i), cluster.link(ROUTER, a.name))
        _put(links, (i, SINK_END), cluster.link(a.name, ROUTER))
        for j, b in enumerate(ordered[i + 1 :], i + 1):
            link = cluster.link(a.name, b.name)
            if link != cluster.link(b.name, a.name):
                raise ReferenceIniError(
                    f"link {a.name} - {b.name} differs by direction; a link of an ini file holds "
                    "both ways",
                    param="paths",
                )
            _put(links, (i, j), link)
    return IniExport(IniCluster(tuple(n.type_name for n in ordered), links), profiles, numbers)


def node_numbers(names: Sequence[NodeId]) -> Mapping[NodeId, int]:
    """Numbers 0, 1, ...: those that the names say if they say all of them, else in order."""
    own = [node_name(i) for i in range(len(names))]
    return {name: i for i, name in enumerate(own if set(own) == set(names) else names)}


def read_solution(
    path: Path, *, num_layers: int | None = None, names: Sequence[NodeId] | None = None
) -> Placement:
    """A solution file as a Placement. ReferenceIniError names section and key.

    `num_layers`: the model's; by default the last layer that anyone holds ends it. `names`: the
    nodes' by number; by default the number itself.
    """
    return solution_of(read_ini(path), num_layers=num_layers, names=names)


def parse_solution(
    text: str,
    source: str,
    *,
    num_layers: int | None = None,
    names: Sequence[NodeId] | None = None,
) -> Placement:
    """As `read_solution`, from text."""
    return solution_of(parse_ini(text, source), num_layers=num_layers, names=names)


def solution_of(
    file: IniFile, *, num_layers: int | None, names: Sequence[NodeId] | None
) -> Placement:
    """The placement in a file; each node's layers are consecutive, or none."""
    settings, solution = file.section("Settings").only("offset"), file.section("Solution")
    file.refuse_others(["Settings", "Solution"])
    offset = settings.whole("offset")
    if offset > MAX_OFFSET:
        raise settings.fault("offset", f"expected at most {MAX_OFFSET}")
    slices: dict[NodeId, LayerRange] = {}
    for key in solution.values:
        match = _SOLUTION_KEY.fullmatch(key)
        number = int(match[1]) - offset if match is not None else -1
        if number < 0 or (names is not None and number >= len(names)):
            raise solution.fault(key, f"expected compute_node_N of a node, N from {offset} on")
        layers = sorted(x for x in solution.items(key) if isinstance(x, int))
        if len(layers) < len(solution.items(key)) or len(layers) > MAX_LAYERS:
            raise solution.fault(key, f"expected at most {MAX_LAYERS} numbers of layers")
        if not layers:
            continue
        first, end = layers[0], layers[-1] + 1
        if layers != list(range(first, first + len(layers))):
            raise solution.fault(key, "its layers are not consecutive, or one is given twice")
        if end > (MAX_LAYERS if num_layers is None else num_layers):
            raise solution.fault(key, f"layer {end - 1} is not in the model")
        name = names[number] if names is not None else node_name(number)
        if name in slices:
            raise solution.fault(key, "this node is given twice")
        slices[name] = LayerRange(first, end)
    last = max((layers.end for layers in slices.values()), default=0)
    if last == 0:
        raise ReferenceIniError(f"{file.source}: [Solution] places no layer", param="Solution")
    return Placement(num_layers if num_layers is not None else last, slices)


def write_solution(placement: Placement, numbers: Mapping[NodeId, int]) -> str:
    """The text that `parse_solution` reads back to the same placement."""
    held = {
        simulator_name(numbers, node): placement.slices[node]
        for node in sorted(placement, key=lambda n: numbers.get(n, -1))
    }
    layers = {name: show_list(range(r.first, r.end)) for name, r in held.items()}
    return show_section("Settings", {"offset": str(FIRST_NUMBER)}) + show_section(
        "Solution", layers
    )


def _put(links: dict[tuple[End, End], IniLink], ends: tuple[End, End], link: Link | None) -> None:
    if link is not None:
        links[ends] = IniLink(link.bits_per_s / BITS_PER_BYTE, link.latency_s)


def _link(ini: IniCluster, src: NodeId, dst: NodeId) -> Link | None:
    link = ini.link(
        SOURCE_END if src == ROUTER else int(src), SINK_END if dst == ROUTER else int(dst)
    )
    # Without bandwidth there is no link; one spelling of that is enough.
    if link is None or link.bytes_per_s <= 0:
        return None
    return Link(link.bytes_per_s * BITS_PER_BYTE, link.latency_s)


def _regions(ini: IniCluster) -> list[str]:
    """Each node's region, numbered by their first nodes."""
    group = list(range(len(ini.types)))

    def root(number: int) -> int:
        while group[number] != number:
            group[number] = group[group[number]]
            number = group[number]
        return number

    for (a, b), link in ini.links.items():
        if isinstance(a, int) and isinstance(b, int) and _near(link):
            low, high = sorted((root(a), root(b)))
            group[high] = low
    numbers: dict[int, int] = {}
    return [f"region-{numbers.setdefault(root(i), len(numbers))}" for i in range(len(group))]


def _router_region(ini: IniCluster, regions: Sequence[str]) -> str:
    """That of the first node it reaches, and is reached from, as a neighbour; else its own."""
    for i, region in enumerate(regions):
        if _near(ini.link(SOURCE_END, i)) and _near(ini.link(i, SINK_END)):
            return region
    return ROUTER_REGION


def _near(link: IniLink | None) -> bool:
    return link is not None and link.bytes_per_s > 0 and link.latency_s <= LOCAL_LATENCY_S


def _commonest(
    links: Mapping[tuple[NodeId, NodeId], Link], where: Mapping[NodeId, str]
) -> dict[tuple[str, str], Link]:
    """The most frequent link of every two regions; the fastest of equally frequent ones."""
    counts: dict[tuple[str, str], Counter[Link]] = {}
    for (a, b), link in links.items():
        pair = (min(where[a], where[b]), max(where[a], where[b]))
        counts.setdefault(pair, Counter())[link] += 1
    return {
        pair: max(found, key=lambda k: (found[k], k.bits_per_s, -k.latency_s))
        for pair, found in counts.items()
    }
