"""The reference artifact's ini files: any value goes round, damage is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.cluster import Cluster, Link
from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import LayerRange, Placement
from solver.problem import SINK, SOURCE
from solver.reference_ini import (
    export_cluster,
    node_numbers,
    parse_solution,
    to_cluster,
    write_solution,
)
from solver.reference_ini_cluster import (
    IniCluster,
    IniLink,
    MachineProfile,
    parse_cluster_file,
    parse_machine_profiles,
    write_cluster_file,
    write_machine_profiles,
)
from solver.reference_ini_simulator import (
    SimulatorCluster,
    SimulatorNode,
    parse_simulator_cluster,
    write_simulator_cluster,
)
from solver.reference_ini_text import SPEEDS, ReferenceIniError, parse_ini, show_quantity
from solver.reference_json import read_reference_cluster

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "clusters"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the published clusters are not beside the project"
)

SMALL = write_cluster_file(
    IniCluster(
        ("A100", "T4x2"),
        {
            ("source", 0): IniLink(1e9, 0.001),
            (0, 1): IniLink(14.2e6, 0.055),
            (1, "sink"): IniLink(1e9, 0.001),
        },
    )
)
PROFILES = write_machine_profiles(
    {
        "SourceNode": MachineProfile(None, 1e10, None, None),
        "SinkNode": MachineProfile(1e10, None, None, None),
        "A100": MachineProfile(1e10, 1e10, 1e9, 40 * 10**9),
        "T4x2": MachineProfile(1e10, 2.5e9, 1e9, 32 * 10**9),
    }
)
SOLUTION = write_solution(
    Placement(4, {NodeId("0"): LayerRange(0, 3), NodeId("1"): LayerRange(2, 4)}),
    {NodeId("0"): 0, NodeId("1"): 1},
)
MACHINE = SimulatorNode("T4", 16 * 10**9, 1e10, 1e10, 1e9, 227904, 0)
SIMULATOR = write_simulator_cluster(
    SimulatorCluster(
        1e10,
        1e10,
        ("T4",),
        {"compute_node_2": MACHINE, "compute_node_3": MACHINE},
        {
            ("source", "compute_node_2"): IniLink(13.9e6, 0.046),
            ("compute_node_2", "compute_node_3"): IniLink(1.1e9, 0.001),
            ("compute_node_3", "sink"): IniLink(13.9e6, 0.046),
        },
    )
)

PARSERS: list[tuple[str, Callable[[str, str], object]]] = [
    (SMALL, parse_cluster_file),
    (PROFILES, parse_machine_profiles),
    (SOLUTION, parse_solution),
    (SIMULATOR, parse_simulator_cluster),
]

speeds = st.floats(0, 1e15, allow_nan=False)


def pairs(cluster: Cluster) -> list[tuple[NodeId, NodeId]]:
    return list(permutations([ROUTER, *(n.name for n in cluster.nodes)], 2))


def all_links(cluster: Cluster) -> dict[tuple[NodeId, NodeId], Link]:
    found = {(a, b): cluster.link(a, b) for a, b in pairs(cluster)}
    return {ends: link for ends, link in found.items() if link is not None}


def test_quantities_read_back_exactly() -> None:
    for value in (14.2 * 1e6, 0.1, 1e9, 123456789.123, 5e-324, 1.7e308, 0.0):
        text = f"[a]\nx={show_quantity(value, SPEEDS, 'mbps')}"
        assert parse_ini(text, "t").section("a").quantity("x", SPEEDS) == value


@settings(max_examples=300, deadline=None)
@given(
    which=st.sampled_from(range(len(PARSERS))),
    at=st.floats(0, 1),
    cut=st.integers(0, 30),
    junk=st.one_of(
        st.text(max_size=12),
        st.sampled_from(["[", "]", "=", "\n[DEFAULT]\n", "\n ", "'", "-1", "1e999", ",,", "%(x)s"]),
    ),
)
def test_damaged_files_are_read_or_refused(which: int, at: float, cut: int, junk: str) -> None:
    text, parse = PARSERS[which]
    place = int(at * len(text))
    try:
        parse(text[:place] + junk + text[place + cut :], "f.ini")
    except ReferenceIniError as error:
        assert str(error).startswith("f.ini: ")


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("[]=:#; \n\t'\",.*0129abNodeLink-source\x00\r")))
def test_noise_is_refused(text: str) -> None:
    for _, parse in PARSERS:
        with pytest.raises(ReferenceIniError):
            parse(text, "f.ini")


@st.composite
def ini_clusters(draw: st.DrawFn) -> IniCluster:
    count = draw(st.integers(1, 6))
    kinds = draw(
        st.lists(st.sampled_from(["T4", "A100", "RTX 4090"]), min_size=count, max_size=count)
    )
    ends: list[tuple[int | str, int | str]] = [("source", i) for i in range(count)]
    ends += [(i, "sink") for i in range(count)]
    ends += [(i, j) for i in range(count) for j in range(i + 1, count)]
    chosen = draw(st.lists(st.sampled_from(ends), unique=True))
    link = st.builds(IniLink, speeds, st.one_of(st.sampled_from([0.001, 0.05]), st.floats(0, 10)))
    return IniCluster(tuple(kinds), {pair: draw(link) for pair in chosen})


@settings(max_examples=150, deadline=None)
@given(ini=ini_clusters())
def test_any_cluster_file_goes_round(ini: IniCluster) -> None:
    assert parse_cluster_file(write_cluster_file(ini), "f.ini") == ini
    profiles = {kind: MachineProfile(1e10, 1e10, 1e9, 10**10) for kind in ini.types}
    cluster = to_cluster(ini, profiles, "any")
    expected = {ends: link for ends, link in ini.links.items() if link.bytes_per_s > 0}
    exported = export_cluster(cluster).cluster
    assert exported.types == ini.types
    assert exported.links.keys() == expected.keys()
    assert exported.links == expected


@settings(max_examples=100, deadline=None)
@given(
    slices=st.dictionaries(st.integers(0, 50), st.tuples(st.integers(0, 79), st.integers(1, 20))),
)
def test_any_placement_goes_round(slices: dict[int, tuple[int, int]]) -> None:
    placement = Placement(
        100, {NodeId(str(n)): LayerRange(a, a + length) for n, (a, length) in slices.items()}
    )
    numbers = node_numbers([NodeId(str(i)) for i in range(51)])
    text = write_solution(placement, numbers)
    if not slices:
        with pytest.raises(ReferenceIniError, match="places no layer"):
            parse_solution(text, "s.ini", num_layers=100)
        return
    assert parse_solution(text, "s.ini", num_layers=100) == placement


@needs_reference
@pytest.mark.parametrize(
    "name", ["cluster10_llama30b", "3cluster24_llama70b", "cluster42_llama70b"]
)
def test_published_clusters_go_through_the_files(name: str) -> None:
    problem = read_reference_cluster(REFERENCE / f"{name}.json").problem
    ends: dict[NodeId, int | str] = {SOURCE: "source", SINK: "sink"}
    ends |= {n.name: int(n.name) for n in problem.nodes}
    links = {
        (ends[k.src], ends[k.dst]): IniLink(k.bytes_per_s, k.latency_s)
        for k in problem.links
        if k.src == SOURCE or k.dst == SINK or int(k.src) < int(k.dst)
    }
    by_number = sorted(problem.nodes, key=lambda n: int(n.name))
    text = write_cluster_file(IniCluster(tuple(n.type_name for n in by_number), links))
    profiles = {
        n.type_name: MachineProfile(n.nic_in_bytes_per_s, n.nic_out_bytes_per_s, 1e9, n.vram_bytes)
        for n in problem.nodes
    }
    cluster = to_cluster(parse_cluster_file(text, "f.ini"), profiles, name)
    assert {n.name: n.region for n in cluster.nodes} == {n.name: n.region for n in problem.nodes}
    wanted = {
        (ROUTER if k.src == SOURCE else k.src, ROUTER if k.dst == SINK else k.dst): Link(
            8 * k.bytes_per_s, k.latency_s
        )
        for k in problem.links
        if k.bytes_per_s > 0
    }
    assert all_links(cluster) == wanted
