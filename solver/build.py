"""From a described cluster and a model's config to a Problem: catalogue or measured tables inside.

Nodes of one kind (type, memory, measurements) share tables. Bits become bytes here. Where a node's
memory is not stated the catalogue's counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from helix_mq.cluster import Cluster, ClusterNode
from helix_mq.ids import ROUTER
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation, WeightForm
from solver.catalogue import Machine, UnknownMachine, machine
from solver.objective import StepTimes, Workload
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode
from solver.roofline import DTYPE_BYTES, step_times
from solver.tables import read_tables
from solver.typical import kv_token_layers, typical_tokens_per_s

TOKEN_BYTES = 4
"""An int32 token id, to and from the router."""
ACTIVATION_ELEMENT_BYTES = 2
"""Activations travel in 16 bits on GPUs."""


def build_problem(
    cluster: Cluster, config: ModelConfig, workload: Workload | None = None
) -> tuple[Problem, Mapping[str, StepTimes]]:
    """The Problem, links in bytes per second, and the step times of its machine types.

    Raises ConfigError for a GPU type that the catalogue does not know, or a bad table.
    """
    times, vram = _tables(cluster)
    step_by_kind = {
        kind: read_tables(source)
        if isinstance(source, Path)
        else step_times(config, source, workload)
        for kind, source in times.items()
    }
    counts = Counter(_kind(n) for n in cluster.nodes)
    forms = {_kind(n): WeightForm(DTYPE_BYTES, n.quantise) for n in cluster.nodes}
    rates = typical_tokens_per_s(config, step_by_kind, counts, vram, workload, forms)
    room = {kind: kv_token_layers(config, size, forms[kind]) for kind, size in vram.items()}
    nodes = tuple(
        ProblemNode(
            name=node.name,
            type_name=(kind := _kind(node)),
            region=node.region,
            max_layers=len(rates[kind]),
            tokens_per_s_by_layers=rates[kind],
            kv_tokens_by_layers=room[kind],
            nic_in_bytes_per_s=node.nic_bits_per_s / 8,
            nic_out_bytes_per_s=node.nic_bits_per_s / 8,
            vram_bytes=vram[kind],
        )
        for node in cluster.nodes
    )
    problem = Problem(
        name=cluster.name,
        num_layers=config.num_layers,
        token_bytes=TOKEN_BYTES,
        activation_bytes=config.activation_bytes_per_token(ACTIVATION_ELEMENT_BYTES),
        nodes=nodes,
        links=tuple(_links(cluster)),
    )
    return problem, step_by_kind


def _kind(node: ClusterNode) -> str:
    """`L4`, `L4/20GB` where its memory is stated, `L4/measured` with tables of that name."""
    parts = [node.type_name]
    if node.vram_bytes is not None and node.vram_bytes != _usual_vram(node.type_name):
        parts.append(f"{node.vram_bytes / 1e9:g}GB")
    if node.tables is not None:
        parts.append(node.tables.stem)
    if node.quantise is not Quantisation.NONE:
        parts.append(node.quantise)
    return "/".join(parts)


def _usual_vram(type_name: str) -> int | None:
    """The catalogue's; None for a type that only its owner's tables know."""
    try:
        return machine(type_name).vram_bytes
    except UnknownMachine:
        return None


def _tables(cluster: Cluster) -> tuple[dict[str, Machine | Path], dict[str, int]]:
    """Per kind of node: its machine or its table file, and its memory."""
    sources: dict[str, Machine | Path] = {}
    vram: dict[str, int] = {}
    for node in cluster.nodes:
        kind = _kind(node)
        if kind in sources:
            continue
        if node.tables is not None and node.vram_bytes is not None:
            # Measured, and its memory stated: the type is only a label.
            sources[kind], vram[kind] = node.tables, node.vram_bytes
            continue
        known = machine(node.type_name)
        sources[kind] = node.tables if node.tables is not None else known
        vram[kind] = node.vram_bytes if node.vram_bytes is not None else known.vram_bytes
    return sources, vram


def _links(cluster: Cluster) -> Iterator[ProblemLink]:
    names = [n.name for n in cluster.nodes]
    for source in (ROUTER, *names):
        for target in (*names, ROUTER):
            if source == target:
                continue
            link = cluster.link(source, target)
            if link is not None:
                yield ProblemLink(
                    SOURCE if source == ROUTER else source,
                    SINK if target == ROUTER else target,
                    link.bits_per_s / 8,
                    link.latency_s,
                )


def with_usual_vram(cluster: Cluster) -> Cluster:
    """The same with every node's memory stated, the catalogue's where it was not."""
    nodes = tuple(
        node
        if node.vram_bytes is not None
        else replace(node, vram_bytes=machine(node.type_name).vram_bytes)
        for node in cluster.nodes
    )
    return replace(cluster, nodes=nodes)
