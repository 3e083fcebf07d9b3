"""The reference artifact's simulator cluster file: the machines of one placement and their links.

It fixes what its simulator runs: for each node memory, NICs, disk and the KV room that its layers
leave (token-layers of the whole node), and the directed links that may be used. The layers
themselves are in the solution file (`reference_ini`). Node I is called `compute_node_(I+2)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from helix_mq.cluster import MAX_NODES
from helix_mq.ids import NodeId
from helix_mq.layers import Placement
from solver.flow import usable_links
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode
from solver.reference_ini_cluster import SINK_END, SOURCE_END, IniLink
from solver.reference_ini_text import (
    SIZES,
    SPEEDS,
    TIMES,
    IniFile,
    ReferenceIniError,
    Section,
    is_name,
    parse_ini,
    read_ini,
    show_list,
    show_quantity,
    show_section,
)

DEFAULT_NIC_BYTES_PER_S = 10e9
DEFAULT_DISK_BYTES_PER_S = 1e9
"""What every published profile says of the coordinator's NIC and of disks."""

FIRST_NUMBER = 2
"""Numbers 0 and 1 are the coordinator's two ends in the artifact."""

_NODE_KEYS = (
    "vram_size",
    "inbound_nic_speed",
    "outbound_nic_speed",
    "disk_speed",
    "machine_type",
    "kv_cache_capacity",
    "activation_backup_capacity",
)


@dataclass(frozen=True, slots=True)
class SimulatorNode:
    """One machine; the two capacities count token-layers over the whole node."""

    machine_type: str
    vram_bytes: int
    nic_in_bytes_per_s: float
    nic_out_bytes_per_s: float
    disk_bytes_per_s: float
    kv_token_layers: int
    activation_backup_token_layers: int


@dataclass(frozen=True, slots=True)
class SimulatorCluster:
    """Nodes by their names in the file; links directed, SOURCE_END first or SINK_END last."""

    coordinator_in_bytes_per_s: float
    coordinator_out_bytes_per_s: float
    machine_types: tuple[str, ...]
    nodes: Mapping[str, SimulatorNode]
    links: Mapping[tuple[str, str], IniLink]


def read_simulator_cluster(path: Path) -> SimulatorCluster:
    """A simulator cluster file. ReferenceIniError names section and key."""
    return simulator_cluster_of(read_ini(path))


def parse_simulator_cluster(text: str, source: str) -> SimulatorCluster:
    """As `read_simulator_cluster`, from text."""
    return simulator_cluster_of(parse_ini(text, source))


def simulator_cluster_of(file: IniFile) -> SimulatorCluster:
    """The cluster in a file whose lists of names and sections agree."""
    nics = ("inbound_nic_speed", "outbound_nic_speed")
    coordinator = file.section("Coordinator").only(*nics)
    types = file.section("MachineTypes").only("types").names("types")
    names = file.section("ComputeNodes").only("names")
    node_names = names.names("names")
    if not 1 <= len(node_names) <= MAX_NODES or {SOURCE_END, SINK_END} & set(node_names):
        raise names.fault("names", f"expected 1 to {MAX_NODES} names, none of them source or sink")
    link_names = file.section("Links").only("names").names("names")
    file.refuse_others(
        ["Coordinator", "MachineTypes", "ComputeNodes", "Links", *node_names, *link_names]
    )
    nodes = {name: _node(file.section(name), types) for name in node_names}
    links: dict[tuple[str, str], IniLink] = {}
    for name in link_names:
        section = file.section(name).only("in", "out", "latency", "bandwidth")
        src, dst = section.text("in"), section.text("out")
        if src not in nodes and src != SOURCE_END:
            raise section.fault("in", "is no node of this file, and not the source")
        if (dst not in nodes and dst != SINK_END) or dst == src:
            raise section.fault("out", "is no other node of this file, and not the sink")
        if (src, dst) in links or (src, dst) == (SOURCE_END, SINK_END):
            raise section.fault("out", f"a link from {src} was given before, or meets no node")
        links[src, dst] = IniLink(
            section.quantity("bandwidth", SPEEDS), section.quantity("latency", TIMES)
        )
    return SimulatorCluster(
        coordinator.quantity("inbound_nic_speed", SPEEDS),
        coordinator.quantity("outbound_nic_speed", SPEEDS),
        tuple(types),
        nodes,
        links,
    )


def write_simulator_cluster(cluster: SimulatorCluster) -> str:
    """The text that `parse_simulator_cluster` reads back to the same cluster."""
    for name in (*cluster.nodes, *cluster.machine_types):
        if not is_name(name):
            raise ReferenceIniError(
                f"{name!r:.60} cannot be written to an ini file: rename it", param="names"
            )
    link_names = {ends: f"link_{ends[0]}_{ends[1]}" for ends in cluster.links}
    nics = {
        "inbound_nic_speed": _speed(cluster.coordinator_in_bytes_per_s),
        "outbound_nic_speed": _speed(cluster.coordinator_out_bytes_per_s),
    }
    parts = [
        show_section("Coordinator", nics),
        show_section("MachineTypes", {"types": show_list(cluster.machine_types)}),
        show_section("ComputeNodes", {"names": show_list(cluster.nodes)}),
    ]
    for name, node in cluster.nodes.items():
        values = {
            "vram_size": show_quantity(float(node.vram_bytes), SIZES, "MB"),
            "inbound_nic_speed": _speed(node.nic_in_bytes_per_s),
            "outbound_nic_speed": _speed(node.nic_out_bytes_per_s),
            "disk_speed": _speed(node.disk_bytes_per_s),
            "machine_type": f'"{node.machine_type}"',
            "kv_cache_capacity": str(node.kv_token_layers),
            "activation_backup_capacity": str(node.activation_backup_token_layers),
        }
        parts.append(show_section(name, values))
    parts.append(show_section("Links", {"names": show_list(link_names.values())}))
    for (src, dst), link in cluster.links.items():
        values = {
            "in": src,
            "out": dst,
            "latency": show_quantity(link.latency_s, TIMES, "MilliSec"),
            "bandwidth": _speed(link.bytes_per_s),
        }
        parts.append(show_section(link_names[src, dst], values))
    return "".join(parts)


def simulator_cluster(
    problem: Problem,
    placement: Placement,
    numbers: Mapping[NodeId, int],
    *,
    partial_inference: bool = True,
    disk_bytes_per_s: float = DEFAULT_DISK_BYTES_PER_S,
) -> SimulatorCluster:
    """What the artifact's simulator needs to run `placement`: its nodes and every usable link.

    Links that no request can take from source to sink are left out, as its scheduler drops them.
    `numbers`: each node's in the cluster file. ReferenceIniError where KV room is unknown.
    """
    names = {name: simulator_name(numbers, name) for name in placement}
    placed = [n for n in problem.nodes if n.name in placement.slices]
    nodes: dict[str, SimulatorNode] = {}
    for node in sorted(placed, key=lambda n: numbers[n.name]):
        nodes[names[node.name]] = SimulatorNode(
            machine_type=node.type_name,
            vram_bytes=node.vram_bytes,
            nic_in_bytes_per_s=node.nic_in_bytes_per_s,
            nic_out_bytes_per_s=node.nic_out_bytes_per_s,
            disk_bytes_per_s=disk_bytes_per_s,
            kv_token_layers=_kv_room(node, len(placement.slices[node.name])),
            activation_backup_token_layers=0,
        )
    ends = {SOURCE: SOURCE_END, SINK: SINK_END, **names}
    links = {
        (ends[k.src], ends[k.dst]): IniLink(k.bytes_per_s, k.latency_s)
        for k in _live(usable_links(problem, placement, partial_inference))
    }
    types = tuple(sorted({node.type_name for node in problem.nodes}))
    nic = DEFAULT_NIC_BYTES_PER_S
    return SimulatorCluster(nic, nic, types, nodes, links)


def simulator_name(numbers: Mapping[NodeId, int], node: NodeId) -> str:
    """`compute_node_(number + 2)`; ReferenceIniError for a node without a number."""
    if node not in numbers:
        raise ReferenceIniError(
            f"node {node} has no number: it is not in the cluster this is written for",
            param="placement",
        )
    return f"compute_node_{numbers[node] + FIRST_NUMBER}"


def _kv_room(node: ProblemNode, layers: int) -> int:
    room = node.kv_tokens(layers)
    if room is None:
        raise ReferenceIniError(
            f"node {node.name}: its KV room with {layers} layers is unknown, and the simulator "
            "cluster must say it: give the cluster's KV tables",
            param="kv_cache_capacity",
        )
    return int(room)


def _live(links: Iterable[ProblemLink]) -> list[ProblemLink]:
    """Those on some way from the source to the sink."""
    kept = list(links)
    forward = _reached(SOURCE, [(k.src, k.dst) for k in kept])
    backward = _reached(SINK, [(k.dst, k.src) for k in kept])
    return [k for k in kept if k.src in forward and k.dst in backward]


def _reached(start: NodeId, steps: Iterable[tuple[NodeId, NodeId]]) -> set[NodeId]:
    after: dict[NodeId, list[NodeId]] = {}
    for a, b in steps:
        after.setdefault(a, []).append(b)
    reached, frontier = {start}, [start]
    while frontier:
        for end in after.get(frontier.pop(), ()):
            if end not in reached:
                reached.add(end)
                frontier.append(end)
    return reached


def _node(section: Section, types: Iterable[str]) -> SimulatorNode:
    section.only(*_NODE_KEYS)
    kind = section.text("machine_type")
    if kind not in types:
        raise section.fault("machine_type", "is not among [MachineTypes] types")
    return SimulatorNode(
        machine_type=kind,
        vram_bytes=round(section.quantity("vram_size", SIZES)),
        nic_in_bytes_per_s=section.quantity("inbound_nic_speed", SPEEDS),
        nic_out_bytes_per_s=section.quantity("outbound_nic_speed", SPEEDS),
        disk_bytes_per_s=section.quantity("disk_speed", SPEEDS),
        kv_token_layers=section.whole("kv_cache_capacity"),
        activation_backup_token_layers=section.whole("activation_backup_capacity"),
    )


def _speed(value: float) -> str:
    return show_quantity(value, SPEEDS, "mbps")
