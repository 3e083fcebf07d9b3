"""What a compatibility run starts from: nodes with layers, links, limits, time tables.

Read from a cluster file of the published data and its `profiles.json`; nothing is evaluated, every
field is checked. Bandwidths act as bytes/s, as they do in the published simulator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.simulator.reference.reading import ReferenceDataError, Table, read_table

COORDINATOR = -1
"""Stands for both ends of every request: the source of links into the chain, the sink of others."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one layer's batch may hold; a request that does not fit waits for the next round."""

    prompt_requests: int
    prompt_tokens: int
    decode_requests: int
    decode_context_tokens: int


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Time of one layer in seconds: `prefill_s[tokens]` and `decode_s[requests]`, both dense."""

    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """One node with layers [first, end); `kv_entries` are token x layer entries of KV room."""

    number: int
    type_name: str
    first: int
    end: int
    kv_entries: float
    nic_in_bytes_per_s: float
    nic_out_bytes_per_s: float
    limits: Limits


@dataclass(frozen=True, slots=True)
class LinkSetup:
    """A directed link; `src` or `dst` is COORDINATOR at the ends. `flow` is tokens/s if known."""

    src: int
    dst: int
    bytes_per_s: float
    latency_s: float
    flow: float | None


@dataclass(frozen=True, slots=True)
class Setup:
    """A cluster with a placement, in the order of its files (which breaks schedulers' ties)."""

    name: str
    num_layers: int
    token_bytes: int
    activation_bytes: int
    start_s: float
    coordinator_nic_in_bytes_per_s: float
    coordinator_nic_out_bytes_per_s: float
    nodes: tuple[NodeSetup, ...]
    links: tuple[LinkSetup, ...]
    times: Mapping[str, LayerTimes]


def read_setup(data: Path, cluster: str, placement: str) -> Setup:
    """The `placement` saved in `clusters/CLUSTER.json` under `data`. ReferenceDataError."""
    return read_setup_file(data / "clusters" / f"{cluster}.json", placement, data / "profiles.json")


def read_setup_file(cluster_file: Path, placement: str, profiles_file: Path) -> Setup:
    """The `placement` saved in `cluster_file`, with the time tables of `profiles_file`.

    ReferenceDataError if a file, the placement or a field is missing or of the wrong kind.
    """
    cluster = read_table(cluster_file)
    placements = cluster.table("placements")
    if placement not in placements.names():
        known = ", ".join(sorted(placements.names()))
        raise ReferenceDataError(
            f"{cluster_file.name}: no placement {placement!r}; there are {known}", param="placement"
        )
    saved = placements.table(placement)
    simulated = saved.table("simulator_cluster")
    model = cluster.table("model")
    machines = cluster.table("machine_types")
    nodes = tuple(_node(entry, machines) for entry in simulated.tables("nodes"))
    profiles = read_table(profiles_file).table("models").table(model.text("name"))
    types = sorted({node.type_name for node in nodes})
    return Setup(
        name=f"{cluster.text('name')}/{placement}",
        num_layers=model.whole("num_layers"),
        token_bytes=model.whole("token_size"),
        activation_bytes=model.whole("activation_size"),
        start_s=saved.number("model_loading_end_time_s"),
        coordinator_nic_in_bytes_per_s=cluster.table("sink").number("nic_in"),
        coordinator_nic_out_bytes_per_s=cluster.table("source").number("nic_out"),
        nodes=nodes,
        links=tuple(_link(entry) for entry in simulated.tables("links")),
        times={name: times_of(profiles.table("machines").table(name)) for name in types},
    )


def _node(entry: Table, machines: Table) -> NodeSetup:
    first, end = entry.wholes("layers", 2)
    type_name = entry.text("type")
    return NodeSetup(
        number=entry.whole("id"),
        type_name=type_name,
        first=first,
        end=end,
        kv_entries=entry.number("kv_cache_capacity"),
        nic_in_bytes_per_s=entry.number("nic_in"),
        nic_out_bytes_per_s=entry.number("nic_out"),
        limits=limits_of(machines.table(type_name).table("settings_by_layers"), end - first),
    )


def limits_of(settings: Table, layers: int) -> Limits:
    """Limits for `layers`; hand-made placements that hold more get those of the longest slice."""
    longest = max(int(key) for key in settings.names())
    entry = settings.table(str(min(layers, longest)))
    return Limits(
        prompt_requests=entry.whole("prompt_max_requests"),
        prompt_tokens=entry.whole("prompt_max_tokens"),
        decode_requests=entry.whole("decode_max_tokens"),
        decode_context_tokens=entry.whole("decode_max_context"),
    )


def _link(entry: Table) -> LinkSetup:
    return LinkSetup(
        src=_end(entry, "src", "source"),
        dst=_end(entry, "dst", "sink"),
        bytes_per_s=entry.number("bandwidth"),
        latency_s=entry.number("latency"),
        flow=entry.number("ref_flow") if "ref_flow" in entry.names() else None,
    )


def _end(entry: Table, field: str, coordinator: str) -> int:
    return COORDINATOR if entry.raw(field) == coordinator else entry.whole(field)


def times_of(machine: Table) -> LayerTimes:
    prefill = machine.points("prompt_bs2time")
    decode = list(dense(machine.points("decode_bs2time")))
    # A lone decode is charged as two: the published simulator's tables start there.
    decode[1] = decode[2]
    return LayerTimes(prefill_s=dense(prefill), decode_s=tuple(decode))


def dense(points: tuple[tuple[int, float], ...]) -> tuple[float, ...]:
    """Linear interpolation of `points` (sorted, from 0) at every whole number up to the last."""
    values = [points[0][1]]
    for (low, low_s), (high, high_s) in pairwise(points):
        for size in range(low + 1, high + 1):
            share = (size - low) / (high - low)
            values.append(low_s + (high_s - low_s) * share)
    return tuple(values)
