"""The same cluster some times slower in everything: for machines too small to emulate it as it is.

Steps and latencies take so many times as long, links carry so many times less. Written as a cluster
file with tables, so that the router, the solver and the simulator all read the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from helix_mq.cluster import DEFAULT_LOCAL, Cluster, Link, read_cluster, write_cluster
from helix_mq.errors import ConfigError
from solver.build import with_usual_vram
from solver.inputs import Source, read_input
from solver.objective import Points, StepTimes
from solver.tables import write_tables

MOST = 1000.0


def slowed_source(source: Source, times: float, folder: Path) -> Source:
    """`source` made `times` slower, as files in `folder`. ConfigError for what cannot be."""
    if not 1 <= times <= MOST:
        raise ConfigError(f"--slower {times:g}: must be in 1..{MOST:g}", param="slower")
    if times == 1:
        return source
    if source.cluster.suffix != ".toml" or source.add or source.remove:
        raise ConfigError(
            f"--slower: takes a cluster in TOML, without added or removed nodes; this is "
            f"{source.cluster}",
            param="slower",
        )
    given = read_input(source)
    if given.step_times is None:
        raise ConfigError(f"{source.cluster}: gives no step times", param="cluster")
    kinds = {node.name: node.type_name for node in given.problem.nodes}
    tables: dict[str, Path] = {}
    for number, (kind, steps) in enumerate(sorted(given.step_times.items())):
        tables[kind] = (folder / f"steps-{number}.csv").resolve()
        write_tables(tables[kind], _slowed(steps, times))
    cluster = with_usual_vram(read_cluster(source.cluster))
    path = folder / "cluster.toml"
    text = write_cluster(_slowed_cluster(cluster, {n: tables[k] for n, k in kinds.items()}, times))
    path.write_text(text, "utf-8")
    return Source(path.resolve(), source.model, workload=source.workload)


def _slowed(steps: StepTimes, times: float) -> StepTimes:
    def all_of(points: Points) -> Points:
        return tuple((size, seconds * times) for size, seconds in points)

    return StepTimes(all_of(steps.prefill), all_of(steps.decode))


def _slowed_cluster(cluster: Cluster, tables: Mapping[str, Path], times: float) -> Cluster:
    def slow(link: Link) -> Link:
        return Link(link.bits_per_s / times, link.latency_s * times)

    # Within a region there is a link without it being written down.
    inside = {(r, r): cluster.regions.get((r, r)) or DEFAULT_LOCAL for r in cluster.region_names()}
    return replace(
        cluster,
        nodes=tuple(
            replace(n, tables=tables[n.name], nic_bits_per_s=n.nic_bits_per_s / times)
            for n in cluster.nodes
        ),
        regions={ends: slow(link) for ends, link in {**inside, **cluster.regions}.items()},
        paths={ends: slow(link) for ends, link in cluster.paths.items()},
    )
