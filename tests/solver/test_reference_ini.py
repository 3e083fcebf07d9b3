"""Clusters from and to the reference artifact's ini files: meaning, round trip, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from pathlib import Path

import pytest

from helix_mq.cluster import Cluster, ClusterNode, Link, parse_cluster, write_cluster
from helix_mq.ids import ROUTER, NodeId
from helix_mq.settings import read_toml
from solver.reference_ini import (
    export_cluster,
    import_cluster,
    node_numbers,
    to_cluster,
)
from solver.reference_ini_cluster import (
    End,
    IniCluster,
    IniLink,
    MachineProfile,
    parse_cluster_file,
    parse_machine_profiles,
    write_cluster_file,
    write_machine_profiles,
)
from solver.reference_ini_text import ReferenceIniError

CLUSTER = """\
# ***** made by hand *****
#     avg_bandwidth: 1000000000 (1000.0 mbps)

[NodeNames]
total_compute_nodes=3

[SourceNode]
connected_nodes=[0, 1]

[SinkNode]
connected_nodes=[1, 2]

[ComputeNode-0]
type=A100
connected_nodes=['source', 1, 2]

[ComputeNode-1]
type=T4x2
connected_nodes=['source', 0, 'sink']

[ComputeNode-2]
type=T4x2
connected_nodes=[0, 'sink']

[Link-source-0]
bandwidth=1000 * mbps
latency=1 * MilliSec

[Link-source-1]
bandwidth=1000 * mbps
latency=1 * MilliSec

[Link-1-sink]
bandwidth = 1 * gbps
latency = 0.001

[Link-2-sink]
bandwidth=14.2 * mbps
latency=55 * MilliSec

[Link-0-1]
bandwidth=1000000000
latency=1.0 * MilliSec

[Link-2-0]
bandwidth=800 * kbps
latency=0.04 * Sec
"""

PROFILES = """\
# disk_speed is not used
[SourceNode]
inbound_nic_speed = -1
outbound_nic_speed = 10 * gbps
disk_speed = -1
vram_size = -1

[SinkNode]
inbound_nic_speed = 10 * gbps
outbound_nic_speed = -1
disk_speed = -1
vram_size = -1

[A100]
inbound_nic_speed = 10 * gbps
outbound_nic_speed = 10 * gbps
disk_speed = 1 * gbps
vram_size = 40 * GB

[T4x2]
inbound_nic_speed = 10 * gbps
outbound_nic_speed = 2.5 * gbps
disk_speed = 1 * gbps
vram_size = 32000 * MB
"""


def pairs(cluster: Cluster) -> list[tuple[NodeId, NodeId]]:
    return list(permutations([ROUTER, *(n.name for n in cluster.nodes)], 2))


def all_links(cluster: Cluster) -> dict[tuple[NodeId, NodeId], Link]:
    found = {(a, b): cluster.link(a, b) for a, b in pairs(cluster)}
    return {ends: link for ends, link in found.items() if link is not None}


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) >= 1, old
    return text.replace(old, new, 1)


@pytest.fixture
def imported(tmp_path: Path) -> Cluster:
    (tmp_path / "my cluster.ini").write_text(CLUSTER)
    (tmp_path / "profiles.ini").write_text(PROFILES)
    return import_cluster(tmp_path / "my cluster.ini", tmp_path / "profiles.ini")


def test_a_cluster_is_read_in_bits_from_files_in_bytes(imported: Cluster) -> None:
    assert imported.name == "my-cluster"
    fast = Link(8e9, 0.001)
    slow = Link(6.4e6, 0.04)
    # 14.2 * 1e6 bytes/s: a factor of 8 more than its name says.
    assert all_links(imported) == {
        (ROUTER, "0"): fast,
        (ROUTER, "1"): fast,
        ("1", ROUTER): fast,
        ("2", ROUTER): Link(113.6e6, 0.055),
        ("0", "1"): fast,
        ("1", "0"): fast,
        ("0", "2"): slow,
        ("2", "0"): slow,
    }


def test_machines_come_from_the_profile(imported: Cluster) -> None:
    assert [(n.name, n.type_name, n.vram_bytes) for n in imported.nodes] == [
        ("0", "A100", 40 * 10**9),
        ("1", "T4x2", 32 * 10**9),
        ("2", "T4x2", 32 * 10**9),
    ]
    # The slower direction of a NIC.
    assert [n.nic_bits_per_s for n in imported.nodes] == [80e9, 20e9, 20e9]


def test_regions_are_what_is_near(imported: Cluster) -> None:
    assert [n.region for n in imported.nodes] == ["region-0", "region-0", "region-1"]
    assert imported.router_region == "region-0"


def test_an_imported_cluster_survives_toml(imported: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(write_cluster(imported))
    again = parse_cluster(read_toml(file), "cluster.toml", tmp_path)
    # "14.2e6 * 8" is written with ten digits.
    assert all_links(again).keys() == all_links(imported).keys()
    for ends, link in all_links(imported).items():
        back = again.link(*ends)
        assert back is not None
        assert back.bits_per_s == pytest.approx(link.bits_per_s, rel=1e-9)
        assert back.latency_s == pytest.approx(link.latency_s, rel=1e-9)


def test_a_uniform_cluster_needs_no_paths() -> None:
    link = IniLink(1e9, 0.001)
    links: dict[tuple[End, End], IniLink] = {("source", i): link for i in range(4)}
    links |= {(i, "sink"): link for i in range(4)}
    links |= {(i, j): link for i in range(4) for j in range(i + 1, 4)}
    profile = MachineProfile(1e10, 1e10, 1e9, 16 * 10**9)
    cluster = to_cluster(IniCluster(("T4",) * 4, links), {"T4": profile}, "uniform")
    assert cluster.paths == {}
    assert cluster.regions == {("region-0", "region-0"): Link(8e9, 0.001)}


def test_no_link_is_added_within_a_region() -> None:
    near, none = IniLink(1e9, 0.001), IniLink(0.0, 0.001)
    ini = IniCluster(("T4",) * 4, {(0, 1): near, (1, 2): near, (2, 3): none})
    profile = MachineProfile(1e10, 1e10, 1e9, 16 * 10**9)
    cluster = to_cluster(ini, {"T4": profile}, "chain")
    assert set(all_links(cluster)) == {("0", "1"), ("1", "0"), ("1", "2"), ("2", "1")}
    assert cluster.router_region == "router"


def test_export_and_import_give_the_same_cluster(imported: Cluster) -> None:
    export = export_cluster(imported)
    ini = parse_cluster_file(write_cluster_file(export.cluster), "c.ini")
    profiles = parse_machine_profiles(write_machine_profiles(export.profiles), "p.ini")
    assert ini == export.cluster
    assert profiles == export.profiles
    assert to_cluster(ini, profiles, imported.name) == imported


def test_other_names_are_numbered_in_order() -> None:
    assert node_numbers([NodeId("b"), NodeId("a")]) == {"b": 0, "a": 1}
    assert node_numbers([NodeId("1"), NodeId("0")]) == {"1": 1, "0": 0}


def simple(
    *nodes: ClusterNode, paths: Mapping[tuple[NodeId, NodeId], Link] | None = None
) -> Cluster:
    return Cluster("c", "eu", nodes, {}, paths or {})


def machine(name: str, kind: str = "T4", vram: int | None = 10**9, nic: float = 8e9) -> ClusterNode:
    return ClusterNode(NodeId(name), kind, "eu", vram, nic, None)


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        (simple(machine("a", vram=None)), "node a: give its vram"),
        (simple(machine("a"), machine("b", nic=1e9)), "another vram or nic"),
        (simple(machine("a", "SinkNode")), "coordinator's name"),
        (
            simple(machine("a"), machine("b"), paths={(NodeId("a"), NodeId("b")): Link(1e6, 0.01)}),
            "differs by direction",
        ),
    ],
)
def test_what_the_format_cannot_say_is_refused(cluster: Cluster, says: str) -> None:
    with pytest.raises(ReferenceIniError, match=says):
        export_cluster(cluster)


def test_a_type_that_would_break_the_file_is_refused() -> None:
    export = export_cluster(simple(machine("a", "T4]\n[Link-0-sink")))
    with pytest.raises(ReferenceIniError, match="rename it"):
        write_cluster_file(export.cluster)
    with pytest.raises(ReferenceIniError, match="rename it"):
        write_machine_profiles(export.profiles)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("total_compute_nodes=3", "total_compute_nodes=0", r"\[NodeNames\] total_compute_nodes"),
        ("total_compute_nodes=3", "total_compute_nodes=9999", "expected 1 to 4096"),
        ("total_compute_nodes=3", "nodes=3", r"\[NodeNames\] nodes = '3': there is no such key"),
        ("total_compute_nodes=3", "", "total_compute_nodes: is missing"),
        ("total_compute_nodes=3", "total_compute_nodes=4", r"no section \[ComputeNode-3\]"),
        ("type=A100", "type A100", "line 14: expected key = value"),
        ("type=A100", "type=", r"\[ComputeNode-0\] type"),
        ("[0, 1]", "0, 1", r"\[SourceNode\] connected_nodes.*list in brackets"),
        ("[0, 1]", "[0, x]", "'x' is neither"),
        ("[0, 1]", "[0, 1, 1]", "lists an end twice"),
        ("[0, 1]", "[0, 1, 2]", "2 has no link section"),
        ("[0, 1]", "[0]", "1 is linked, but not listed"),
        ("1000 * mbps", "1000 * MilliSec", r"\[Link-source-0\] bandwidth.*kbps or mbps or gbps"),
        ("1000 * mbps", "-1 * mbps", "must not be negative"),
        ("1000 * mbps", "9e307 * gbps", "is too large"),
        ("1000 * mbps", "__import__('os').getpid()", "expected a number"),
        ("1000 * mbps", "10 ** 9 ** 9", "expected a number"),
        ("1000 * mbps", "nan", "expected a number"),
        ("[Link-2-0]", "[Link-1-0]", "holds both ways"),
        ("[Link-2-0]", "[Link-2-2]", "no node links to itself"),
        ("[Link-2-0]", "[Link-2-7]", "there are nodes 0 to 2"),
        ("[Link-2-0]", "[Link-0-source]", "expected Link-I-J"),
        ("[Link-2-0]", "[Link-0-1]", "line 45: \\[Link-0-1\\] is given twice"),
        ("latency=55 * MilliSec", "bandwidth=1", "bandwidth is given twice"),
        ("[NodeNames]", "", "expected a \\[section\\] first"),
    ],
)
def test_bad_cluster_files_are_refused_by_section_and_key(old: str, new: str, says: str) -> None:
    with pytest.raises(ReferenceIniError, match=says) as error:
        parse_cluster_file(replaced(CLUSTER, old, new), "c.ini")
    assert str(error.value).startswith("c.ini: ")
    assert error.value.param


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("vram_size = 40 * GB", "vram_size = -1", r"\[A100\] vram_size.*not be negative"),
        ("vram_size = 40 * GB", "vram_size = 40 * gbps", "Byte or KB or MB or GB"),
        ("vram_size = 40 * GB", "vram = 40 * GB", "there is no such key"),
        ("[SinkNode]", "[Sink]", r"no section \[SinkNode\]"),
        ("disk_speed = -1", "disk_speed = -2", "must not be negative"),
    ],
)
def test_bad_profiles_are_refused(old: str, new: str, says: str) -> None:
    with pytest.raises(ReferenceIniError, match=says):
        parse_machine_profiles(replaced(PROFILES, old, new), "p.ini")


def test_a_type_without_a_profile_is_refused() -> None:
    ini = parse_cluster_file(replaced(CLUSTER, "type=A100", "type=H100"), "c.ini")
    with pytest.raises(ReferenceIniError, match=r"\[ComputeNode-0\] type = 'H100'"):
        to_cluster(ini, parse_machine_profiles(PROFILES, "p.ini"), "x")
