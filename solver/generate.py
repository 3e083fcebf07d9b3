"""Clusters of the two kinds that the published system is evaluated on, from a seed.

`single`: one region, fast links. `geo`: the machines shuffled into regions of nearly equal size,
slow links between (10 to 15 MB/s and 40 to 60 ms drawn per pair of regions; the published ones draw
per pair of machines from the same ranges).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from helix_mq.cluster import Cluster, ClusterNode, Link
from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId

LOCAL = Link(8e9, 0.001)
NIC_BITS_PER_S = 80e9
BETWEEN_BITS_PER_S = (80e6, 120e6)
BETWEEN_LATENCY_S = (0.040, 0.060)
MAX_GENERATED = 4096

_COUNT = re.compile(r"\s*([A-Za-z0-9._-]{1,40})\s*=\s*([0-9]{1,5})\s*", re.ASCII)


def parse_counts(text: str) -> dict[str, int]:
    """`"A100=4,L4=8"` -> counts by GPU type. ConfigError in words for anything else."""
    counts: dict[str, int] = {}
    for part in text.split(","):
        match = _COUNT.fullmatch(part)
        if match is None or int(match[2]) < 1:
            raise ConfigError(
                f"nodes: {part[:60]!r} is not TYPE=COUNT; write e.g. A100=4,L4=8,T4=12",
                param="nodes",
            )
        counts[match[1]] = counts.get(match[1], 0) + int(match[2])
    if sum(counts.values()) > MAX_GENERATED:
        raise ConfigError(f"nodes: more than {MAX_GENERATED} in all", param="nodes")
    return counts


def generate_single(counts: Mapping[str, int], name: str = "single") -> Cluster:
    """All machines in one region; nothing is drawn."""
    nodes = tuple(
        ClusterNode(NodeId(n), kind, "local", None, NIC_BITS_PER_S, None)
        for n, kind in _names(counts)
    )
    return Cluster(name, "local", nodes, {("local", "local"): LOCAL}, {})


def generate_geo(counts: Mapping[str, int], regions: int, seed: int, name: str = "geo") -> Cluster:
    """The machines over `regions` regions. The router sits in the first."""
    machines = _names(counts)
    if not 2 <= regions <= len(machines):
        raise ConfigError(
            f"regions={regions}: take at least 2 and at most one per node ({len(machines)})",
            param="regions",
        )
    rng = random.Random(seed)
    rng.shuffle(machines)
    names = [f"region-{i}" for i in range(regions)]
    nodes = tuple(
        ClusterNode(
            NodeId(n), kind, names[i * regions // len(machines)], None, NIC_BITS_PER_S, None
        )
        for i, (n, kind) in enumerate(machines)
    )
    links = {(region, region): LOCAL for region in names}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            # Rounded as the file shows them, so that what is written reads back the same.
            speed = float(round(rng.uniform(*BETWEEN_BITS_PER_S), -5))
            links[a, b] = Link(speed, round(rng.uniform(*BETWEEN_LATENCY_S), 3))
    ordered = tuple(sorted(nodes, key=lambda n: (n.region, n.name)))
    return Cluster(name, names[0], ordered, links, {})


def _names(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """(name, type) of every machine: `l4-0`, `l4-1`, ..."""
    return [(f"{kind.lower()}-{i}", kind) for kind in sorted(counts) for i in range(counts[kind])]
