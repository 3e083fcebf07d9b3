"""The planner against the published system: targets, heuristics, scale.

    helix-mq bench planner targets    [--data ../shared/reference] [--time-limit 60] [--out FILE]
    helix-mq bench planner heuristics [--data ...] [--out FILE]
    helix-mq bench planner scale|roofline|serving --help

`targets`: our best placement of the published clusters beside the published ones, their solver's
figures, and what we require of ourselves. `heuristics`: each published heuristic again, by our
code, on every cluster that has it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import planner_roofline, planner_scale, planner_serving
from bench.planner_common import machine_summary, write_results
from solver.flow import max_flow
from solver.problem import ProblemError
from solver.reference_json import ReferenceCluster, ReferenceFileError, read_reference_cluster
from solver.search import solve
from solver.search_types import Method, NoPlacement, Progress, SolveOptions

HEURISTICS: tuple[Method, ...] = ("petals", "swarm", "homogeneous", "separate")

VERDICTS = {True: "met", False: "MISSED", None: "not comparable"}


@dataclass(frozen=True, slots=True)
class Target:
    """A published cluster and what must be reached on it, tokens/s.

    `theirs`: the published MILP's flow (Gurobi 11 on 14 cores). `best`: the best published
    placement of any method. `proven`: within the limit.
    """

    cluster: str
    theirs: float
    best: float
    must: float
    proven: bool
    gap: float
    seconds: float


TARGETS = (
    Target("single24_llama70b", 1289.6, 1289.6, 2045.6, True, 0.0, 10.0),
    Target("3cluster24_llama70b", 1212.2, 1212.2, 1392.6, False, 0.60, 60.0),
    Target("cluster42_llama70b", 4137.5, 4892.2, 5800.0, False, 0.15, 60.0),
    Target("cluster10_llama30b", 286.59, 286.59, 286.59, True, 0.0, 60.0),
)


@dataclass(frozen=True, slots=True)
class Reached:
    """Ours on one target. `first_s`: when the placement reported was found."""

    cluster: str
    published_milp_tokens_per_s: float
    best_published_tokens_per_s: float
    must_tokens_per_s: float
    objective_tokens_per_s: float
    upper_bound_tokens_per_s: float
    gap: float
    proven_optimal: bool
    seconds: float
    first_s: float
    method: str
    met: bool


@dataclass(frozen=True, slots=True)
class Repeated:
    """A heuristic's flow: as published, of the published placement by our flow, and of ours.

    `met` is None where the published placement breaks its own cluster's tables (`reason`): it has
    no flow to compare with.
    """

    cluster: str
    method: str
    published_tokens_per_s: float | None
    published_placement_tokens_per_s: float | None
    ours_tokens_per_s: float | None
    reason: str
    met: bool | None


def reach(target: Target, data: Path, time_limit_s: float) -> Reached:
    """Plans one target with everything there is."""
    problem = _cluster(data, target.cluster).problem
    result = solve(problem, SolveOptions(time_limit_s=time_limit_s), _tell)
    enough = result.objective_tokens_per_s * (1 - 1e-9)
    found = next(
        (p.seconds for p in result.trace if p.incumbent_tokens_per_s >= enough),
        result.seconds,
    )
    met = (
        result.objective_tokens_per_s >= target.must * (1 - 1e-4)
        and (result.proven_optimal or not target.proven)
        and result.gap <= target.gap + 1e-6
        and (result.seconds if target.proven else found) <= target.seconds
    )
    return Reached(
        cluster=target.cluster,
        published_milp_tokens_per_s=target.theirs,
        best_published_tokens_per_s=target.best,
        must_tokens_per_s=target.must,
        objective_tokens_per_s=result.objective_tokens_per_s,
        upper_bound_tokens_per_s=result.upper_bound_tokens_per_s,
        gap=result.gap,
        proven_optimal=result.proven_optimal,
        seconds=result.seconds,
        first_s=found,
        method=result.method,
        met=met,
    )


def repeat(data: Path) -> list[Repeated]:
    """Every heuristic on every cluster that publishes it."""
    rows = []
    for path in sorted((data / "clusters").glob("*.json")):
        try:
            cluster = read_reference_cluster(path)
        except ReferenceFileError:
            # Parts of a cluster, as the artifact simulates them: no nodes to place on.
            continue
        for method in HEURISTICS:
            published = cluster.published.get(method)
            if published is None:
                continue
            try:
                theirs = max_flow(cluster.problem, published.placement).tokens_per_s
            except ProblemError as error:
                why = f"as published: {error.message}"
                rows.append(Repeated(path.stem, method, None, None, None, why, None))
                continue
            try:
                ours = solve(
                    cluster.problem, SolveOptions(method=method, time_limit_s=20.0)
                ).objective_tokens_per_s
                reason = ""
            except NoPlacement as error:
                ours, reason = None, error.message
            said = published.max_flow_tokens_per_s
            # What its links allow, where the artifact lets the method use few of them.
            need = said if said is not None else theirs
            rows.append(
                Repeated(
                    cluster=path.stem,
                    method=method,
                    published_tokens_per_s=said,
                    published_placement_tokens_per_s=theirs,
                    ours_tokens_per_s=ours,
                    reason=reason,
                    met=ours is not None and ours >= need * (1 - 1e-4),
                )
            )
    return rows


def _cluster(data: Path, name: str) -> ReferenceCluster:
    return read_reference_cluster(data / "clusters" / f"{name}.json")


def _tell(progress: Progress) -> None:
    bound = progress.upper_bound_tokens_per_s
    limit = f", bound {bound:.1f}" if bound is not None else ""
    line = (
        f"{progress.seconds:6.1f} s {progress.phase}: {progress.incumbent_tokens_per_s:.1f}{limit}"
    )
    print(line, file=sys.stderr, flush=True)


def _figure(tokens_per_s: float | None) -> str:
    return "       -" if tokens_per_s is None else f"{tokens_per_s:8.1f}"


def _show(row: Reached) -> str:
    proven = "proven" if row.proven_optimal else f"gap {row.gap:.1%}"
    return (
        f"{row.cluster:22} published {row.published_milp_tokens_per_s:8.1f} best "
        f"{row.best_published_tokens_per_s:8.1f} must {row.must_tokens_per_s:8.1f} ours "
        f"{row.objective_tokens_per_s:8.1f} bound {row.upper_bound_tokens_per_s:8.1f} {proven:10} "
        f"{row.seconds:5.1f} s (found after {row.first_s:.1f} s)  {'met' if row.met else 'MISSED'}"
    )


def _show_again(row: Repeated) -> str:
    return (
        f"{row.cluster:24} {row.method:12} published {_figure(row.published_tokens_per_s)} "
        f"(their placement by our flow {_figure(row.published_placement_tokens_per_s)}) ours "
        f"{_figure(row.ours_tokens_per_s)} {VERDICTS[row.met]} {row.reason[:100]}"
    )


PARTS: dict[str, Callable[[Sequence[str]], None]] = {
    "scale": planner_scale.main,
    "roofline": planner_roofline.main,
    "serving": planner_serving.main,
}
"""What is measured in modules of its own."""


def main(given: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if given is None else given
    if given and given[0] in PARTS:
        PARTS[given[0]](given[1:])
        return
    parser = argparse.ArgumentParser(
        prog="helix-mq bench planner",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("targets", "heuristics", *PARTS))
    parser.add_argument("--data", type=Path, default=Path("../shared/reference"))
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(given)
    rows: list[Reached | Repeated] = []
    if arguments.what == "targets":
        for target in TARGETS:
            reached = reach(target, arguments.data, arguments.time_limit)
            rows.append(reached)
            if not arguments.json:
                print(_show(reached), flush=True)
    else:
        repeated = repeat(arguments.data)
        rows += repeated
        for again in repeated if not arguments.json else ():
            print(_show_again(again))
    body: dict[str, object] = {
        "command": f"helix-mq bench planner {arguments.what}",
        "time_limit_s": arguments.time_limit,
        "machine": machine_summary(),
        "rows": [asdict(row) for row in rows],
    }
    if arguments.json:
        print(json.dumps(body))
    if arguments.out is not None:
        write_results(arguments.out, body)


if __name__ == "__main__":
    main()
