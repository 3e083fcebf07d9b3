"""Cluster files: units, strict reading, round trips, generated clusters, drawings."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.cluster import (
    DEFAULT_LOCAL,
    MAX_BITS_PER_S,
    MAX_LATENCY_S,
    MAX_VRAM_BYTES,
    Cluster,
    ClusterError,
    Link,
    parse_cluster,
    read_cluster,
    write_cluster,
)
from helix_mq.errors import ConfigError
from helix_mq.ids import ROUTER, NodeId
from helix_mq.units import bits_per_s, num_bytes, seconds, show_bits_per_s, show_bytes, show_seconds
from solver.generate import generate_geo, generate_single, parse_counts
from solver.problem import MAX_BYTES, MAX_BYTES_PER_S
from solver.problem import MAX_LATENCY_S as MOST_THAT_IS_PLANNED_WITH_S
from solver.show import cluster_as_dict, draw_cluster

TEXT = """
name = "two"
router = "eu"
[[nodes]]
name = "a100"
type = "A100"
count = 2
region = "eu"
[[nodes]]
name = "t4"
type = "T4"
region = "us"
vram = "15 GB"
[[links]]
between = ["us", "eu"]
bandwidth = "100 Mbit/s"
latency = "40 ms"
[[paths]]
from = "a100-0"
to = "t4"
bandwidth = "0 bit/s"
latency = "1 s"
"""


def parse(text: str) -> Cluster:
    return parse_cluster(tomllib.loads(text), "test.toml", Path())


def test_links_paths_and_defaults() -> None:
    cluster = parse(TEXT)
    a0, a1, t4 = (NodeId(n) for n in ("a100-0", "a100-1", "t4"))
    assert cluster.link(a0, a1) == DEFAULT_LOCAL
    assert cluster.link(a1, t4) == cluster.link(t4, a0) == Link(1e8, 0.04)
    assert cluster.link(a0, t4) is None
    assert cluster.link(ROUTER, t4) == Link(1e8, 0.04)
    assert cluster.link(a0, ROUTER) == DEFAULT_LOCAL


def test_no_link_between_regions_is_no_way() -> None:
    cluster = parse(TEXT.replace('between = ["us", "eu"]', 'between = ["us", "us"]'))
    assert cluster.link(ROUTER, NodeId("t4")) is None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"100 Mbit/s"', '"100"', "bandwidth"),
        ('"100 Mbit/s"', '"100 MB/s"', "kbit/s"),
        ('"100 Mbit/s"', "100", "unit"),
        ('"40 ms"', '"-40 ms"', "latency"),
        ('"15 GB"', '"15 Gbit/s"', "vram"),
        ("count = 2", "count = 0", "count"),
        ('region = "us"', 'region = "us"\nfoo = 1', "nodes.1.foo"),
        ('["us", "eu"]', '["us", "mars"]', "mars"),
        ('to = "t4"', 'to = "t5"', "t5"),
        ('name = "t4"', 'name = "a100-1"', "two nodes are called a100-1"),
        ('name = "t4"', 'name = "../t4"', "name"),
        ('router = "eu"', "", "router: missing"),
    ],
)
def test_refusals_name_the_field(old: str, new: str, says: str) -> None:
    assert old in TEXT
    with pytest.raises(ClusterError, match=says):
        parse(TEXT.replace(old, new, 1))


def test_files_read_back_the_same(tmp_path: Path) -> None:
    for cluster in (
        parse(TEXT),
        generate_single({"A100": 4, "L4": 8}),
        generate_geo({"A100": 4, "L4": 8, "T4": 12}, 3, seed=0),
    ):
        path = tmp_path / f"{cluster.name}.toml"
        path.write_text(write_cluster(cluster))
        assert read_cluster(path) == cluster


def test_generated_regions_are_even_slow_between_and_seeded() -> None:
    counts = {"A100": 4, "L4": 8, "T4": 12}
    cluster = generate_geo(counts, 3, seed=0)
    sizes = [sum(n.region == r for n in cluster.nodes) for r in cluster.region_names()]
    assert sizes == [8, 8, 8]
    for (a, b), link in cluster.regions.items():
        if a != b:
            assert 80e6 <= link.bits_per_s <= 120e6
            assert 0.040 <= link.latency_s <= 0.060
    assert cluster == generate_geo(counts, 3, seed=0)
    assert cluster != generate_geo(counts, 3, seed=1)


@pytest.mark.parametrize("text", ["", "A100", "A100=0", "A100=-1", "A100=4;L4=3", "=4", "A 1=4"])
def test_bad_counts(text: str) -> None:
    with pytest.raises(ConfigError, match="TYPE=COUNT"):
        parse_counts(text)


def test_drawing_names_every_region_and_type() -> None:
    text = draw_cluster(parse(TEXT))
    for word in ("eu", "us", "2 x A100", "1 x T4", "100 Mbit/s, 40 ms", "a100-0 -> t4"):
        assert word in text
    assert cluster_as_dict(parse(TEXT))["router_region"] == "eu"


@given(st.integers(1, 10**15))
def test_units_show_what_they_read(value: int) -> None:
    assert num_bytes(show_bytes(value)) == value
    assert bits_per_s(show_bits_per_s(float(value))) == pytest.approx(value, rel=1e-9)


@given(st.floats(1e-6, 1e5))
def test_times_show_what_they_read(value: float) -> None:
    assert seconds(show_seconds(value)) == pytest.approx(value, rel=1e-9)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(["name", "router", "nodes", "links", "paths", "type", "between"]),
                x,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_values_give_a_cluster_or_a_cluster_error(values: object) -> None:
    if not isinstance(values, dict):
        return
    try:
        parse_cluster(values, "fuzz", Path())
    except ClusterError as e:
        assert str(e)


def test_the_planner_takes_all_that_a_file_may_say() -> None:
    assert MAX_BITS_PER_S / 8 <= MAX_BYTES_PER_S
    assert MAX_LATENCY_S <= MOST_THAT_IS_PLANNED_WITH_S
    assert MAX_VRAM_BYTES <= MAX_BYTES


@pytest.mark.parametrize(
    ("said", "instead", "field"),
    [
        ('latency = "40 ms"', 'latency = "7200 s"', "links.0.latency"),
        ('bandwidth = "100 Mbit/s"', 'bandwidth = "1e9 Tbit/s"', "links.0.bandwidth"),
        ('vram = "15 GB"', 'vram = "15e9 GB"', "nodes.1.vram"),
        ('vram = "15 GB"', 'nic = "1e9 Tbit/s"', "nodes.1.nic"),
    ],
    ids=("latency", "bandwidth", "vram", "nic"),
)
def test_a_figure_beyond_reason_is_told_by_its_field(said: str, instead: str, field: str) -> None:
    assert said in TEXT
    with pytest.raises(ClusterError) as caught:
        parse_cluster(tomllib.loads(TEXT.replace(said, instead)), "test.toml", Path())
    value = instead.partition(" = ")[2].strip('"')
    assert f"test.toml: {field} = {value!r}" in caught.value.message
    assert "check the unit" in caught.value.message
    assert caught.value.param == field
