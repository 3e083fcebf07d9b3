"""The published clusters: read whole, refused by field when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helix_mq.errors import ConfigError, HelixError
from solver.flow import max_flow
from solver.reference_json import (
    ReferenceCluster,
    ReferenceFileError,
    read_model_name,
    read_reference_cluster,
    read_reference_profiles,
)

SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"name": "m", "num_layers": 2, "token_size": 2, "activation_size": 100},
    "nodes": [
        {
            "id": i,
            "type": "T4",
            "vram": 16e9,
            "nic_in": 1e9,
            "nic_out": 1e9,
            "max_num_layers": 2,
            "throughput_by_layers": {"1": 100.0, "2": 50.0},
            "kv_cache_capacity_by_layers": {"1": 1000, "2": 900},
        }
        for i in range(2)
    ],
    "links": [
        {"src": a, "dst": b, "bandwidth": 1e6, "latency": 0.001}
        for a, b in (("source", 0), (0, 1), (1, "sink"))
    ],
    "placements": {"helix": {"layers": {"0": [0, 1], "1": [1, 2]}}},
}
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)


def written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_a_small_cluster_reads_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "c.json", SMALL)
    cluster = read_reference_cluster(path)
    assert cluster.problem.num_layers == 2
    assert cluster.problem.activation_bytes == 102, "a token's own bytes travel with it"
    assert read_reference_cluster(path, simulator_sizes=False).problem.activation_bytes == 100
    flow = max_flow(cluster.problem, cluster.published["helix"].placement)
    assert flow.tokens_per_s == pytest.approx(100.0)
    assert read_model_name(path) == "m"


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_files_are_refused_or_read(tmp_path: Path, data: st.DataObject) -> None:
    """One value anywhere replaced by another: an answer or one of our errors, nothing else."""
    value: Any = json.loads(json.dumps(SMALL))
    at: Any = value
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.integers(0, 3)):
            at = at[key]
            continue
        if data.draw(st.booleans()):
            at[key] = data.draw(JSON)
        else:
            del at[key]
        break
    path = written(tmp_path / "damaged.json", value)
    try:
        cluster = read_reference_cluster(path)
        for published in cluster.published.values():
            max_flow(cluster.problem, published.placement)
    except HelixError:
        pass


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [at] + [
        path
        for key, held in inner
        for path in (places(held, (*at, key)) if isinstance(held, dict | list) else [(*at, key)])
    ]


@pytest.mark.parametrize(
    "odd", [None, True, -1, 0, 10**17, 10**400, float("nan"), float("inf"), "", [], {}, [[1]]]
)
def test_no_odd_value_anywhere_gets_through_as_a_crash(tmp_path: Path, odd: object) -> None:
    """JSON's integers have any size, and Python's reader takes NaN and Infinity."""
    whole = json.loads(json.dumps(SMALL))
    whole["placements"]["helix"]["max_flow_reference_simulator"] = 100.0
    path = tmp_path / "odd.json"
    for place in places(whole):
        value: Any = json.loads(json.dumps(whole)) if place else odd
        at = value
        for key in place[:-1]:
            at = at[key]
        if place:
            at[place[-1]] = odd
        try:
            cluster = read_reference_cluster(written(path, value))
            for published in cluster.published.values():
                max_flow(cluster.problem, published.placement)
        except ConfigError as error:
            assert error.param, place


@pytest.mark.parametrize("size", ["nan", "inf", "-1", "x", "", "1e999"])
@pytest.mark.parametrize("seconds", [0.2, 10**400, float("nan"), -1.0])
def test_profiles_with_odd_points_are_refused(tmp_path: Path, size: str, seconds: float) -> None:
    table = {"1": 0.1, size: seconds}
    machines = {"T4": {"prompt_bs2time": table, "decode_bs2time": {"1": 0.1, "2": 0.2}}}
    path = written(tmp_path / "p.json", {"models": {"m": {"machines": machines}}})
    with pytest.raises(ConfigError):
        read_reference_profiles(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "nul", '{"model": 3}', '{"model": {}}'])
def test_what_is_no_cluster_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ReferenceFileError):
        read_reference_cluster(path)
    with pytest.raises(ReferenceFileError):
        read_reference_profiles(path)
    with pytest.raises(ReferenceFileError):
        read_reference_cluster(tmp_path / "none.json")


def test_published_placements_have_their_published_flow(
    reference: Callable[[str], ReferenceCluster],
) -> None:
    for name in ("single24_llama70b", "3cluster24_llama70b", "cluster42_llama70b"):
        cluster = reference(name)
        for method, published in cluster.published.items():
            if published.max_flow_tokens_per_s is None or published.links is not None:
                continue
            flow = max_flow(cluster.problem, published.placement)
            assert flow.tokens_per_s == pytest.approx(published.max_flow_tokens_per_s, rel=1e-4), (
                name,
                method,
            )


def test_profiles_cover_both_models(reference_dir: Path) -> None:
    profiles = read_reference_profiles(reference_dir / "profiles.json")
    assert sorted(profiles) == ["llama30b", "llama70b"]
    for machines in profiles.values():
        assert len(machines) == 7


def test_another_json_file_is_told_by_its_name(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ReferenceFileError, match=r"config\.json: not a cluster"):
        read_reference_cluster(config)
