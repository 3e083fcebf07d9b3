"""Simulator cluster files of the reference artifact, and what is written for a placement."""

from __future__ import annotations

from pathlib import Path

import pytest

from solver.problem import SINK, SOURCE
from solver.reference_ini import (
    node_numbers,
)
from solver.reference_ini_cluster import (
    IniLink,
)
from solver.reference_ini_simulator import (
    parse_simulator_cluster,
    simulator_cluster,
    simulator_name,
    write_simulator_cluster,
)
from solver.reference_ini_text import ReferenceIniError
from solver.reference_json import read_reference_cluster

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "clusters"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the published clusters are not beside the project"
)

SIMULATOR = """\
# Simulator cluster file

[Coordinator]
inbound_nic_speed=10000.0 * mbps
outbound_nic_speed=10000.0 * mbps

[MachineTypes]
types=['T4', 'A100']

[ComputeNodes]
names=['compute_node_2', 'compute_node_3']

[compute_node_2]
vram_size=16000.0 * MB
inbound_nic_speed=10000.0 * mbps
outbound_nic_speed=10000.0 * mbps
disk_speed=1000.0 * mbps
machine_type="T4"
kv_cache_capacity=227904
activation_backup_capacity=0

[compute_node_3]
vram_size=40000.0 * MB
inbound_nic_speed=10000.0 * mbps
outbound_nic_speed=10000.0 * mbps
disk_speed=1000.0 * mbps
machine_type='A100'
kv_cache_capacity=1088160
activation_backup_capacity=0

[Links]
names=['link_source_compute_node_2', 'link_compute_node_2_compute_node_3', 'l3']

[link_source_compute_node_2]
in=source
out=compute_node_2
latency=46.0 * MilliSec
bandwidth=13.9 * mbps

[link_compute_node_2_compute_node_3]
in=compute_node_2
out=compute_node_3
latency=51.00000000000001 * MilliSec
bandwidth=1125.0 * mbps

[l3]
in=compute_node_3
out=sink
latency=1.0 * MilliSec
bandwidth=1125.0 * mbps
"""


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) >= 1, old
    return text.replace(old, new, 1)


def test_a_simulator_cluster_is_read_and_written() -> None:
    cluster = parse_simulator_cluster(SIMULATOR, "sim.ini")
    assert list(cluster.nodes) == ["compute_node_2", "compute_node_3"]
    node = cluster.nodes["compute_node_3"]
    assert (node.machine_type, node.vram_bytes, node.kv_token_layers) == (
        "A100",
        40 * 10**9,
        1088160,
    )
    assert node.nic_in_bytes_per_s == 1e10
    assert cluster.links["source", "compute_node_2"] == IniLink(13.9e6, 0.046)
    latency = cluster.links["compute_node_2", "compute_node_3"].latency_s
    assert latency == 51.00000000000001 * 0.001
    assert parse_simulator_cluster(write_simulator_cluster(cluster), "again") == cluster


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("'compute_node_3']", "'compute_node_2']", r"\[ComputeNodes\] names.*each once"),
        ("'compute_node_3']", "'nobody']", r"nothing refers to such a section"),
        ("in=source", "in=nobody", r"\[link_source_compute_node_2\] in = 'nobody'"),
        ("out=sink", "out=compute_node_3", "no other node"),
        ("in=source", "in=compute_node_3", "sink|given before|no other"),
        ('"T4"', '"T5"', "not among"),
        ("kv_cache_capacity=227904", "kv_cache_capacity=1.5", "whole number"),
        ("[l3]", "[l4]", "nothing refers|no section"),
        ("disk_speed=1000.0 * mbps", "", "disk_speed: is missing"),
    ],
)
def test_bad_simulator_clusters_are_refused(old: str, new: str, says: str) -> None:
    text = replaced(SIMULATOR, old, new)
    if new == "in=compute_node_3":
        text = text.replace("out=compute_node_2\n", "out=sink\n", 1)
    with pytest.raises(ReferenceIniError, match=says):
        parse_simulator_cluster(text, "sim.ini")


@needs_reference
@pytest.mark.parametrize(
    ("name", "method", "partial"),
    [
        ("cluster10_llama30b", "helix", False),
        ("3cluster24_llama70b", "swarm", False),
        ("3cluster24_llama70b", "petals", True),
    ],
)
def test_the_links_written_are_those_the_artifact_wrote(
    name: str, method: str, partial: bool
) -> None:
    reference = read_reference_cluster(REFERENCE / f"{name}.json")
    published = reference.published[method]
    problem = reference.problem
    numbers = node_numbers([n.name for n in problem.nodes])
    made = simulator_cluster(problem, published.placement, numbers, partial_inference=partial)
    ends = {SOURCE: "source", SINK: "sink"}
    ends |= {n: simulator_name(numbers, n) for n in published.placement}
    assert published.links is not None
    assert set(made.links) == {(ends[a], ends[b]) for a, b in published.links}
    assert parse_simulator_cluster(write_simulator_cluster(made), "again") == made
    if name == "cluster10_llama30b":
        # The artifact's own files say these for six layers of LLaMA-30B.
        rooms = {node.machine_type: node.kv_token_layers for node in made.nodes.values()}
        assert rooms == {"T4": 227904, "L4": 457344}


@needs_reference
def test_unknown_kv_room_is_refused() -> None:
    reference = read_reference_cluster(REFERENCE / "3cluster24_a100_llama70b.json")
    numbers = node_numbers([n.name for n in reference.problem.nodes])
    with pytest.raises(ReferenceIniError, match="KV room with 20 layers is unknown"):
        simulator_cluster(reference.problem, reference.published["separate"].placement, numbers)
