"""How far the planner's serving estimate is from the published simulator's offline runs.

    helix-mq bench planner serving [--data ../shared/reference] [--out FILE.json]

Placements are the published ones, step times its profiles, workload its means. Also says whether
the estimate orders each pair of placements on one cluster as the runs do, which is all that a
planner needs of it; the max flow's ordering stands beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.planner_common import machine_summary, write_results
from solver.flow import max_flow
from solver.inputs import Source, read_input
from solver.objective import ServingModel, estimate
from solver.reference_json import read_reference_cluster

RUNS = (
    ("single_llama70b_offline_helix", "single24_llama70b", "helix"),
    ("single_llama70b_offline_swarm", "single24_llama70b", "swarm"),
    ("ex_offline_maxflow", "single24_llama70b", "helix_example"),
    ("dist_llama70b_offline_helix", "3cluster24_llama70b", "helix"),
    ("dist_llama70b_offline_swarm", "3cluster24_llama70b", "swarm"),
    ("mp_petals", "3cluster24_llama70b", "petals"),
    ("single_llama30b_offline_helix", "single24_llama30b", "helix"),
    ("single_llama30b_offline_swarm", "single24_llama30b", "swarm"),
    ("het_offline_helix", "cluster42_llama70b", "helix"),
    ("het_offline_swarm", "cluster42_llama70b", "swarm"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One run: decode tokens/s as estimated and as the published simulator measures it."""

    case: str
    cluster: str
    placement: str
    max_flow_tokens_per_s: float
    estimated_tokens_per_s: float
    measured_tokens_per_s: float

    @property
    def error(self) -> float:
        return self.estimated_tokens_per_s / self.measured_tokens_per_s - 1


def compare(data: Path) -> list[Row]:
    """Every run of RUNS whose placement the data hold."""
    measured = json.loads((data / "measured.json").read_text("utf-8"))
    rows = []
    for case, cluster, name in RUNS:
        path = data / "clusters" / f"{cluster}.json"
        published = read_reference_cluster(path).published
        given = read_input(Source(path))
        if name not in published or given.step_times is None:
            continue
        placement = published[name].placement
        flow = max_flow(given.problem, placement)
        model = ServingModel(given.step_times, chunked=False, token_return="router")
        served = estimate(given.problem, placement, flow, model)
        rows.append(
            Row(
                case,
                cluster,
                name,
                flow.tokens_per_s,
                served.decode_tokens_per_s,
                float(measured[case]["decode_tokens_per_s"]),
            )
        )
    return rows


def ordered_alike(rows: list[Row]) -> tuple[int, int, int]:
    """Pairs on one cluster; how many the estimate, and how many the max flow, put in order."""
    pairs = [(a, b) for a, b in itertools.combinations(rows, 2) if a.cluster == b.cluster]
    by_estimate = sum(
        (a.estimated_tokens_per_s > b.estimated_tokens_per_s)
        == (a.measured_tokens_per_s > b.measured_tokens_per_s)
        for a, b in pairs
    )
    by_flow = sum(
        (a.max_flow_tokens_per_s > b.max_flow_tokens_per_s)
        == (a.measured_tokens_per_s > b.measured_tokens_per_s)
        for a, b in pairs
    )
    return len(pairs), by_estimate, by_flow


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="helix-mq bench planner serving", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/reference"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(given)
    rows = compare(arguments.data)
    print(f"{'case':32} {'max flow':>9} {'estimate':>9} {'measured':>9} {'error':>7}")
    for row in rows:
        print(
            f"{row.case:32} {row.max_flow_tokens_per_s:9.1f} {row.estimated_tokens_per_s:9.1f} "
            f"{row.measured_tokens_per_s:9.1f} {row.error:+7.1%}"
        )
    pairs, by_estimate, by_flow = ordered_alike(rows)
    print(f"of {pairs} pairs on one cluster {by_estimate} are in order; by max flow {by_flow}")
    if arguments.out is not None:
        body: dict[str, object] = {
            "command": "helix-mq bench planner serving",
            "machine": machine_summary(),
            "rows": [{**asdict(row), "error": row.error} for row in rows],
            "pairs": {"all": pairs, "by_estimate": by_estimate, "by_max_flow": by_flow},
        }
        write_results(arguments.out, body)


if __name__ == "__main__":
    main()
