"""The reference artifact's cluster and machine profile files, as they stand.

Cluster file: numbered nodes with a type and what they connect to (`[ComputeNode-I]`), and one
section per pair (`[Link-I-J]`, both ways; `[Link-source-I]`, `[Link-I-sink]`, one way). Machine
profile: NIC, disk and memory per type, and for the coordinator's two ends. What they mean for a
Cluster of this project is `reference_ini`'s business.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from helix_mq.cluster import MAX_NODES
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

SOURCE_END: Final = "source"
SINK_END: Final = "sink"
SOURCE_NODE: Final = "SourceNode"
SINK_NODE: Final = "SinkNode"
End = int | str
"""A node's number, or SOURCE_END or SINK_END: the coordinator's two ends."""

_LINK = re.compile(r"Link-(?:source-([0-9]{1,6})|([0-9]{1,6})-sink|([0-9]{1,6})-([0-9]{1,6}))")
_PROFILE_KEYS = ("inbound_nic_speed", "outbound_nic_speed", "disk_speed", "vram_size")


@dataclass(frozen=True, slots=True)
class IniLink:
    """Bytes per second (the file's `gbps` are 1e9 of them) and one-way latency."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class IniCluster:
    """`types[i]` is node i's. Links between nodes hold both ways and are keyed (low, high)."""

    types: tuple[str, ...]
    links: Mapping[tuple[End, End], IniLink]

    def link(self, src: End, dst: End) -> IniLink | None:
        """From one end to another, if there is a link."""
        if isinstance(src, int) and isinstance(dst, int):
            return self.links.get((min(src, dst), max(src, dst)))
        return self.links.get((src, dst))


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """Of a machine type, or of a coordinator's end. None: -1 in the file, does not apply."""

    nic_in_bytes_per_s: float | None
    nic_out_bytes_per_s: float | None
    disk_bytes_per_s: float | None
    vram_bytes: int | None


def read_cluster_file(path: Path) -> IniCluster:
    """A cluster file. ReferenceIniError names section and key."""
    return cluster_of(read_ini(path))


def parse_cluster_file(text: str, source: str) -> IniCluster:
    """As `read_cluster_file`, from text."""
    return cluster_of(parse_ini(text, source))


def cluster_of(file: IniFile) -> IniCluster:
    """The cluster in a file whose node lists and links agree."""
    names = file.section("NodeNames").only("total_compute_nodes")
    count = names.whole("total_compute_nodes")
    if not 1 <= count <= MAX_NODES:
        raise names.fault("total_compute_nodes", f"expected 1 to {MAX_NODES}")
    types = tuple(
        file.section(f"ComputeNode-{i}").only("type", "connected_nodes").text("type")
        for i in range(count)
    )
    links: dict[tuple[End, End], IniLink] = {}
    neighbours: dict[End, set[End]] = defaultdict(set)
    known = {"NodeNames", SOURCE_NODE, SINK_NODE, *(f"ComputeNode-{i}" for i in range(count))}
    for name, section in file.sections.items():
        if name in known:
            continue
        ends = _ends(section, count)
        if ends in links:
            raise ReferenceIniError(
                f"{file.source}: [{name}] is the same link as [Link-{ends[0]}-{ends[1]}], "
                "which holds both ways",
                param=name,
            )
        section.only("bandwidth", "latency")
        links[ends] = IniLink(
            section.quantity("bandwidth", SPEEDS), section.quantity("latency", TIMES)
        )
        neighbours[ends[0]].add(ends[1])
        neighbours[ends[1]].add(ends[0])
    _check_connected(file.section(SOURCE_NODE).only("connected_nodes"), neighbours[SOURCE_END])
    _check_connected(file.section(SINK_NODE).only("connected_nodes"), neighbours[SINK_END])
    for i in range(count):
        _check_connected(file.section(f"ComputeNode-{i}"), neighbours[i])
    return IniCluster(types, links)


def write_cluster_file(cluster: IniCluster) -> str:
    """The text that `parse_cluster_file` reads back to the same cluster."""
    neighbours: dict[End, set[End]] = defaultdict(set)
    for a, b in cluster.links:
        neighbours[a].add(b)
        neighbours[b].add(a)

    def connected(end: End) -> str:
        return show_list(sorted(neighbours[end], key=_rank))

    parts = [
        show_section("NodeNames", {"total_compute_nodes": str(len(cluster.types))}),
        show_section(SOURCE_NODE, {"connected_nodes": connected(SOURCE_END)}),
        show_section(SINK_NODE, {"connected_nodes": connected(SINK_END)}),
    ]
    for i, kind in enumerate(cluster.types):
        if not is_name(kind):
            raise ReferenceIniError(
                f"type {kind!r:.60} cannot be written to an ini file: rename it", param="type"
            )
        values = {"type": kind, "connected_nodes": connected(i)}
        parts.append(show_section(f"ComputeNode-{i}", values))
    for a, b in sorted(cluster.links, key=_link_order):
        link = cluster.links[a, b]
        values = {
            "bandwidth": show_quantity(link.bytes_per_s, SPEEDS, "mbps"),
            "latency": show_quantity(link.latency_s, TIMES, "MilliSec"),
        }
        parts.append(show_section(f"Link-{a}-{b}", values))
    return "".join(parts)


def read_machine_profiles(path: Path) -> Mapping[str, MachineProfile]:
    """A machine profile file: by type, and for SourceNode and SinkNode. ReferenceIniError."""
    return profiles_of(read_ini(path))


def parse_machine_profiles(text: str, source: str) -> Mapping[str, MachineProfile]:
    """As `read_machine_profiles`, from text."""
    return profiles_of(parse_ini(text, source))


def profiles_of(file: IniFile) -> Mapping[str, MachineProfile]:
    """The profiles in a file; figures may be missing only at the coordinator's ends."""
    file.section(SOURCE_NODE)
    file.section(SINK_NODE)
    profiles = {}
    for name, section in file.sections.items():
        section.only(*_PROFILE_KEYS)
        figures = [section.signed(key, SPEEDS) for key in _PROFILE_KEYS[:3]]
        figures.append(section.signed("vram_size", SIZES))
        for key, figure in zip(_PROFILE_KEYS, figures, strict=True):
            if figure < 0 and (figure != -1 or name not in (SOURCE_NODE, SINK_NODE)):
                raise section.fault(key, "must not be negative")
        nic_in, nic_out, disk, vram = (None if f < 0 else f for f in figures)
        size = None if vram is None else round(vram)
        profiles[name] = MachineProfile(nic_in, nic_out, disk, size)
    return profiles


def write_machine_profiles(profiles: Mapping[str, MachineProfile]) -> str:
    """The text that `parse_machine_profiles` reads back to the same profiles."""
    parts = []
    for name, profile in profiles.items():
        if not is_name(name):
            raise ReferenceIniError(
                f"type {name!r:.60} cannot be written to an ini file: rename it", param="type"
            )
        values = {
            "inbound_nic_speed": _or_not(profile.nic_in_bytes_per_s, SPEEDS, "gbps"),
            "outbound_nic_speed": _or_not(profile.nic_out_bytes_per_s, SPEEDS, "gbps"),
            "disk_speed": _or_not(profile.disk_bytes_per_s, SPEEDS, "gbps"),
            "vram_size": _or_not(profile.vram_bytes, SIZES, "GB"),
        }
        parts.append(show_section(name, values))
    return "".join(parts)


def _or_not(value: float | None, units: Mapping[str, float], unit: str) -> str:
    return "-1" if value is None else show_quantity(float(value), units, unit)


def _ends(section: Section, count: int) -> tuple[End, End]:
    match = _LINK.fullmatch(section.name)
    if match is None:
        raise ReferenceIniError(
            f"{section.source}: [{section.name:.80}]: expected Link-I-J, Link-source-I or "
            f"Link-I-sink with numbers of nodes below {count}",
            param=section.name,
        )
    numbers = [int(text) for text in match.groups() if text is not None]
    if any(n >= count for n in numbers) or len(set(numbers)) < len(numbers):
        raise ReferenceIniError(
            f"{section.source}: [{section.name}]: there are nodes 0 to {count - 1}, and no node "
            "links to itself",
            param=section.name,
        )
    if match[1] is not None:
        return SOURCE_END, numbers[0]
    if match[2] is not None:
        return numbers[0], SINK_END
    return min(numbers), max(numbers)


def _check_connected(section: Section, linked: set[End]) -> None:
    """The artifact keeps each link in three places; they must say the same."""
    items = section.items("connected_nodes")
    listed = set(items)
    if len(listed) < len(items):
        raise section.fault("connected_nodes", "lists an end twice")
    for end in sorted(listed ^ linked, key=_rank):
        what = "has no link section" if end in listed else "is linked, but not listed"
        raise section.fault("connected_nodes", f"{end} {what}")


def _rank(end: End) -> tuple[int, int, str]:
    if isinstance(end, int):
        return (1, end, "")
    return (0 if end == SOURCE_END else 2, 0, end)


def _link_order(ends: tuple[End, End]) -> tuple[int, tuple[int, int, str], tuple[int, int, str]]:
    """Links from the source first, then to the sink, then between nodes, as the artifact does."""
    kind = 0 if ends[0] == SOURCE_END else 1 if ends[1] == SINK_END else 2
    return (kind, _rank(ends[0]), _rank(ends[1]))
