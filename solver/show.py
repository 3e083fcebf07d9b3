"""A cluster as text: its regions with their machines, and the links between them."""

from __future__ import annotations

from collections import Counter

from helix_mq.cluster import DEFAULT_LOCAL, Cluster, Link
from helix_mq.units import show_bits_per_s, show_seconds


def draw_cluster(cluster: Cluster) -> str:
    """A box per region, then links between regions and exceptions."""
    lines = [f"{cluster.name}: {len(cluster.nodes)} nodes, router in {cluster.router_region}", ""]
    width = 60
    for region in cluster.region_names():
        members = [n for n in cluster.nodes if n.region == region]
        kinds = Counter(n.type_name for n in members)
        local = cluster.regions.get((region, region), DEFAULT_LOCAL)
        lines.append(f"+-- {region} ".ljust(width, "-") + "+")
        if region == cluster.router_region:
            lines.append("| router".ljust(width) + "|")
        lines += [f"| {kinds[kind]:>3} x {kind}".ljust(width) + "|" for kind in sorted(kinds)]
        lines.append(f"| within: {_speed(local)}".ljust(width) + "|")
        lines.append("+".ljust(width, "-") + "+")
    between = [(pair, link) for pair, link in sorted(cluster.regions.items()) if pair[0] != pair[1]]
    if between:
        lines += ["", "between regions"]
        lines += [f"  {a} <-> {b}: {_speed(link)}" for (a, b), link in between]
    if cluster.paths:
        lines += ["", "single paths"]
        lines += [f"  {a} -> {b}: {_speed(p)}" for (a, b), p in sorted(cluster.paths.items())]
    return "\n".join(lines)


def cluster_as_dict(cluster: Cluster) -> dict[str, object]:
    """The same for programs; units in the names."""
    return {
        "name": cluster.name,
        "router_region": cluster.router_region,
        "nodes": [{"name": n.name, "type": n.type_name, "region": n.region} for n in cluster.nodes],
        "links": [
            {"between": list(pair), **_link(link)} for pair, link in sorted(cluster.regions.items())
        ],
        "paths": [
            {"from": a, "to": b, **_link(link)} for (a, b), link in sorted(cluster.paths.items())
        ],
    }


def _link(link: Link) -> dict[str, float]:
    return {"bits_per_s": link.bits_per_s, "latency_s": link.latency_s}


def _speed(link: Link) -> str:
    return f"{show_bits_per_s(link.bits_per_s)}, {show_seconds(link.latency_s)}"
