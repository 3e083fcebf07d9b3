"""How the planner's cost grows with the cluster: synthetic clusters of 24 to 1,000 nodes.

    helix-mq bench planner scale [--sizes 24,50,...] [--methods auto] [--out FILE]

Each size is planned in a process of its own, so that its peak memory is its own; a uniform network
and one of regions joined by slow links. Results go to bench/results/planner-scale.json, the plot
beside it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.planner_common import machine_summary, write_results
from helix_mq.ids import NodeId
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode
from solver.search import solve
from solver.search_types import METHODS, Method, NoPlacement, SolveOptions

SIZES = (24, 50, 100, 200, 500, 1000)
NUM_LAYERS = 80
TYPES = (
    # name, tokens of one layer per second, layers held at most, share of the nodes
    ("A100", 24_000.0, 12, 2),
    ("L4", 8_000.0, 7, 4),
    ("T4", 5_700.0, 4, 6),
    ("L4x2", 17_000.0, 14, 2),
    ("T4x4", 20_000.0, 18, 2),
)
"""Near the published tables for a 70B model: throughput falls a little faster than one over k."""
FAST_BYTES_PER_S, SLOW_BYTES_PER_S = 1e9, 12e6


@dataclass(frozen=True, slots=True)
class ScalePoint:
    """One planned cluster: `asked` is the method asked for, `method` the one that found the plan.

    `plan_cpu_s` is what other programs on the machine do not change.

    The figures are None, and `refused` says why, where there is no plan.
    """

    nodes: int
    regions: int
    time_limit_s: float
    asked: str
    method: str | None
    objective_tokens_per_s: float | None
    upper_bound_tokens_per_s: float | None
    gap: float | None
    refused: str
    build_s: float
    plan_s: float
    plan_cpu_s: float
    peak_memory_mib: float


def synthetic_problem(nodes: int, regions: int, seed: int = 0) -> Problem:
    """A cluster of five machine types; links between regions are 80 times slower than within."""
    rng = random.Random(seed)
    kinds = [kind for kind in TYPES for _ in range(kind[3])]
    machines = []
    for i in range(nodes):
        name, rate, most, _ = kinds[i % len(kinds)]
        machines.append(
            ProblemNode(
                name=NodeId(f"n{i:04d}"),
                type_name=name,
                region=f"region-{i * regions // nodes}",
                max_layers=most,
                tokens_per_s_by_layers=tuple(
                    rate / k * (1 - 0.03 * (k - 1)) for k in range(1, most + 1)
                ),
                kv_tokens_by_layers=(),
                nic_in_bytes_per_s=1e10,
                nic_out_bytes_per_s=1e10,
                vram_bytes=0,
            )
        )
    links = []
    for a in machines:
        links.append(ProblemLink(SOURCE, a.name, FAST_BYTES_PER_S, 0.001))
        links.append(ProblemLink(a.name, SINK, FAST_BYTES_PER_S, 0.001))
        for b in machines:
            if a is not b:
                near = a.region == b.region
                width = FAST_BYTES_PER_S if near else SLOW_BYTES_PER_S * rng.uniform(0.8, 1.25)
                links.append(ProblemLink(a.name, b.name, width, 0.001 if near else 0.05))
    return Problem(
        f"synthetic-{nodes}-{regions}", NUM_LAYERS, 2, 16_384, tuple(machines), tuple(links)
    )


def measure(nodes: int, regions: int, time_limit_s: float, method: Method) -> ScalePoint:
    """Plan one cluster here; call in a fresh process for an honest peak of memory."""
    begun = time.perf_counter()
    problem = synthetic_problem(nodes, regions)
    built, built_cpu = time.perf_counter(), time.process_time()
    result, refused = None, ""
    try:
        result = solve(problem, SolveOptions(method=method, time_limit_s=time_limit_s))
    except NoPlacement as error:
        refused = error.message
    return ScalePoint(
        nodes=nodes,
        regions=regions,
        time_limit_s=time_limit_s,
        asked=method,
        method=result.method if result else None,
        objective_tokens_per_s=result.objective_tokens_per_s if result else None,
        upper_bound_tokens_per_s=result.upper_bound_tokens_per_s if result else None,
        gap=result.gap if result else None,
        refused=refused,
        build_s=built - begun,
        plan_s=time.perf_counter() - built,
        plan_cpu_s=time.process_time() - built_cpu,
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def plot(points: list[ScalePoint], path: Path) -> None:
    """Planning time and gap against the number of nodes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    times, gaps = figure.subplots(1, 2)
    methods = list(dict.fromkeys(p.asked for p in points))
    for regions in sorted({p.regions for p in points}):
        place = "one region" if regions == 1 else f"{regions} regions"
        for colour, method in enumerate(methods):
            mine = [p for p in points if (p.regions, p.asked) == (regions, method)]
            label = place if len(methods) == 1 else f"{method}, {place}"
            look = {
                "color": f"C{colour if len(methods) > 1 else regions}",
                "linestyle": "-" if regions == 1 else "--",
                "marker": "o",
            }
            times.plot([p.nodes for p in mine], [p.plan_s for p in mine], label=label, **look)
            found = [(p.nodes, 100 * p.gap) for p in mine if p.gap is not None]
            gaps.plot([n for n, _ in found], [gap for _, gap in found], label=label, **look)
    times.set(xlabel="nodes", ylabel="planning time, s", xscale="log", yscale="log")
    gaps.set(xlabel="nodes", ylabel="gap to the bound, %", xscale="log", ylim=(0, None))
    figure.legend(*times.get_legend_handles_labels(), loc="outside right upper", fontsize="x-small")
    figure.savefig(path)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="helix-mq bench planner scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--methods", default="auto", help=f"any of {','.join(METHODS)}")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--regions", default="1,4")
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("bench/results/planner-scale.json"))
    arguments = parser.parse_args(given)
    points = []
    context = multiprocessing.get_context("spawn")
    for regions in map(int, arguments.regions.split(",")):
        for nodes in map(int, arguments.sizes.split(",")):
            for method in arguments.methods.split(","):
                with context.Pool(1) as pool:
                    task = (nodes, regions, arguments.time_limit, method)
                    point = pool.apply(measure, task)
                points.append(point)
                print(json.dumps(asdict(point)), flush=True)
    command = "helix-mq bench planner scale " + " ".join(sys.argv[1:] if given is None else given)
    body: dict[str, object] = {
        "command": command.strip(),
        "machine": machine_summary(),
        "points": [asdict(p) for p in points],
    }
    write_results(arguments.out, body)
    plot(points, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
