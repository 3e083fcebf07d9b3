"""Any placement in compatibility mode: what the published artifact would be started with.

Its cluster files save placements with the links its simulator uses; for another placement these are
the links along which layers fit, with the flow that `solver.flow` gives them. Loading takes the
longest slice's bytes over its disk, and a second.
"""

from __future__ import annotations

import math
from pathlib import Path

from bench.simulator.reference.cases import Mode, Part, SchedulerKind
from bench.simulator.reference.reading import ReferenceDataError, Table, read_table
from bench.simulator.reference.run import (
    Progress,
    ReferenceResult,
    options_of,
    queries_of,
    simulate,
)
from bench.simulator.reference.setup import (
    COORDINATOR,
    LinkSetup,
    NodeSetup,
    Setup,
    limits_of,
    read_setup_file,
    times_of,
)
from helix_mq.ids import NodeId
from helix_mq.layers import Placement
from solver.flow import max_flow, usable_links
from solver.problem import SINK, SOURCE
from solver.reference_json import read_reference_cluster


def run_on(
    cluster_file: Path,
    data: Path,
    placement: str | Placement,
    part: Part,
    *,
    progress: Progress | None = None,
) -> ReferenceResult:
    """A published placement by name, or any other, loaded as `part` says. ReferenceDataError."""
    profiles = data / "profiles.json"
    if isinstance(placement, str):
        setup = read_setup_file(cluster_file, placement, profiles)
    else:
        setup = setup_of(cluster_file, profiles, placement)
    return simulate(setup, queries_of(part, data), options_of(part), progress=progress)


def part_of(scheduler: str, mode: str, in_flight: int | None, rate: int | None) -> Part:
    """A load by the words of the command line. ReferenceDataError for others.

    Offline, max flow fills the KV room; the others hold `in_flight` requests.
    """
    try:
        kind, how = SchedulerKind(scheduler), Mode(mode)
    except ValueError as error:
        raise ReferenceDataError(f"{error}", param="scheduler") from None
    if how is Mode.OFFLINE and kind is not SchedulerKind.MAX_FLOW and in_flight is None:
        raise ReferenceDataError(
            f"{scheduler} offline holds a fixed number of requests: give --in-flight (the "
            "published runs hold 240 on 24 nodes)",
            param="in_flight",
        )
    return Part("", "", kind, how, in_flight, rate)


def setup_of(cluster_file: Path, profiles_file: Path, placement: Placement) -> Setup:
    """`placement` on the cluster in the file. ReferenceDataError, ProblemError."""
    problem = read_reference_cluster(cluster_file).problem
    cluster = read_table(cluster_file)
    model, machines = cluster.table("model"), cluster.table("machine_types")
    profiles = read_table(profiles_file).table("models").table(model.text("name"))
    by_number = {entry.whole("id"): entry for entry in cluster.tables("nodes")}
    numbers: dict[NodeId, int] = {name: int(name) for name in placement}
    flow = max_flow(problem, placement)
    flows = {(edge.src, edge.dst): edge.tokens_per_s for edge in flow.edges}
    nodes = []
    for name in sorted(placement, key=lambda n: numbers[n]):
        entry, layers = by_number.get(numbers[name]), placement.slices[name]
        if entry is None:
            raise ReferenceDataError(f"{cluster_file.name}: no node {name}", param="placement")
        room = entry.table("kv_cache_capacity_by_layers")
        settings = machines.table(entry.text("type")).table("settings_by_layers")
        nodes.append(
            NodeSetup(
                number=numbers[name],
                type_name=entry.text("type"),
                first=layers.first,
                end=layers.end,
                kv_entries=room.number(str(len(layers))),
                nic_in_bytes_per_s=entry.number("nic_in"),
                nic_out_bytes_per_s=entry.number("nic_out"),
                limits=limits_of(settings, len(layers)),
            )
        )
    ends = {SOURCE: COORDINATOR, SINK: COORDINATOR, **numbers}
    links = tuple(
        LinkSetup(
            src=ends[link.src],
            dst=ends[link.dst],
            bytes_per_s=link.bytes_per_s,
            latency_s=link.latency_s,
            flow=flows.get((link.src, link.dst), 0.0),
        )
        for link in usable_links(problem, placement, True)
    )
    return Setup(
        name=f"{cluster.text('name')}/planned",
        num_layers=problem.num_layers,
        token_bytes=model.whole("token_size"),
        activation_bytes=model.whole("activation_size"),
        start_s=_loading_s(model, by_number, numbers, placement),
        coordinator_nic_in_bytes_per_s=cluster.table("sink").number("nic_in"),
        coordinator_nic_out_bytes_per_s=cluster.table("source").number("nic_out"),
        nodes=tuple(nodes),
        links=links,
        times={n.type_name: times_of(profiles.table("machines").table(n.type_name)) for n in nodes},
    )


def _loading_s(
    model: Table, by_number: dict[int, Table], numbers: dict[NodeId, int], placement: Placement
) -> float:
    layer = model.number("layer_param_bytes")
    seconds = max(
        len(placement.slices[name]) * layer / by_number[numbers[name]].number("disk_speed")
        for name in placement
    )
    return float(math.ceil(seconds) + 1)
