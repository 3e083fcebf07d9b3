"""How fast the native simulation is, and whether its memory stays flat.

`helix-mq bench simulator speed --data DIR` runs the case that the published simulator's speed is
known for: single24 · 70B · offline · max flow, 660 simulated seconds, on one core. `--scale` runs
1,000 nodes and 100,000 requests instead. Results are printed, and written where `--out` says.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.planner_common import machine_summary, write_results
from bench.simulator.native import Progress, SimResult, Workload, simulate
from bench.simulator.records import Recorder
from bench.simulator.settings import Mode, SimSettings
from bench.simulator.stats import report
from bench.traces.workload import open_workload
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange, Placement
from solver.objective import StepTimes
from solver.problem import SINK, SOURCE, Problem, ProblemLink, ProblemNode
from solver.reference_json import read_reference_cluster, read_reference_profiles

PUBLISHED_CPU_S = 390.0
"""Of the published simulator for the same 660 seconds on one core under CPython 3.11, unmodified;
`ex_offline_maxflow` in the published data's README."""
CLUSTER, PLACEMENT, MODEL = "single24_llama70b", "helix_example", "llama70b"

STAGES, LAYERS_A_STAGE = 8, 10
SCALE_TIMES = StepTimes(
    prefill=((0.0, 0.0), (1000.0, 0.008)), decode=((0.0, 0.0), (1.0, 0.0014), (800.0, 0.011))
)
"""About an A100's, per layer of a 70B model."""


@dataclass(slots=True)
class PeakMemory:
    """Most memory of this process by then, at a quarter of the run and at its end, in MB."""

    quarter_mb: float = 0.0
    end_mb: float = 0.0

    def __call__(self, progress: Progress) -> None:
        self.end_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        if progress.simulated_s <= progress.end_s / 4:
            self.quarter_mb = self.end_mb


def published_case(data: Path) -> dict[str, Any]:
    """The published simulator's case in native mode."""
    cluster = read_reference_cluster(data / "clusters" / f"{CLUSTER}.json")
    times = read_reference_profiles(data / "profiles.json")[MODEL]
    source = open_workload(f"reference:{data / 'traces' / 'trace_offline_seed0_lengths.csv'}")
    # By the router, as there: the same work is timed.
    core = replace(SimSettings().core, token_return="router")
    settings = SimSettings(duration_s=600.0, warmup_s=60.0, core=core)
    recorder, memory = Recorder(60.0, 600.0), PeakMemory()
    placement = cluster.published[PLACEMENT].placement
    work = Workload(source.lengths())
    result = simulate(cluster.problem, placement, times, work, settings, recorder, memory)
    found = report(recorder)
    return {
        "case": f"{CLUSTER} {PLACEMENT} offline maxflow",
        "decode_tokens_per_s": found.decode_tokens_per_s,
        "itl_p50_s": found.itl.p50,
        "ttft_p50_s": found.ttft.p50,
        "published_simulator_cpu_s": PUBLISHED_CPU_S,
        "times_as_fast": PUBLISHED_CPU_S / result.cpu_s,
        **_figures(result, memory),
    }


def scale_case(nodes: int, requests: int, rate: float) -> dict[str, Any]:
    """Uniform stages of many nodes each, all linked to the next; requests by a Poisson clock."""
    problem, placement = uniform_cluster(nodes)
    spec = f"synthetic:prompt=lognormal(6,1),output=lognormal(3.8,0.8),rate={rate},take={requests}"
    duration_s = requests / rate
    settings = SimSettings(mode=Mode.ONLINE, warmup_s=0.0, duration_s=1.1 * duration_s, drain=True)
    recorder, memory = Recorder(0.0, 1.1 * duration_s), PeakMemory()
    work = Workload(open_workload(spec).arrivals())
    result = simulate(problem, placement, {"big": SCALE_TIMES}, work, settings, recorder, memory)
    return {
        "case": f"{nodes} nodes in {STAGES} stages, {requests} requests at {rate:g}/s",
        **_figures(result, memory),
    }


def uniform_cluster(nodes: int) -> tuple[Problem, Placement]:
    """Node i holds stage i mod STAGES; links go from each stage to the next."""
    layers = STAGES * LAYERS_A_STAGE
    names = [NodeId(f"n{i:04d}") for i in range(nodes)]
    stage = {name: i % STAGES for i, name in enumerate(names)}
    machines = tuple(
        ProblemNode(
            name=name,
            type_name="big",
            region="here",
            max_layers=LAYERS_A_STAGE,
            tokens_per_s_by_layers=(3000.0,) * LAYERS_A_STAGE,
            kv_tokens_by_layers=(4e6,) * LAYERS_A_STAGE,
            nic_in_bytes_per_s=1.25e9,
            nic_out_bytes_per_s=1.25e9,
            vram_bytes=80 * 10**9,
        )
        for name in names
    )
    links = tuple(ProblemLink(a, b, 1.25e9, 1e-3) for a, b in _pairs(names, stage))
    held = {
        name: LayerRange(stage[name] * LAYERS_A_STAGE, (stage[name] + 1) * LAYERS_A_STAGE)
        for name in names
    }
    return Problem("uniform", layers, 2, 16384, machines, links), Placement(layers, held)


def _pairs(names: list[NodeId], stage: dict[NodeId, int]) -> Iterator[tuple[NodeId, NodeId]]:
    for name in names:
        if stage[name] == 0:
            yield SOURCE, name
        if stage[name] == STAGES - 1:
            yield name, SINK
        yield from ((name, after) for after in names if stage[after] == stage[name] + 1)


def _figures(result: SimResult, memory: PeakMemory) -> dict[str, Any]:
    return {
        **result.as_dict(),
        "simulated_s_per_cpu_s": result.simulated_s / result.cpu_s,
        "peak_memory_mb_at_a_quarter": memory.quarter_mb,
        "peak_memory_mb_at_the_end": memory.end_mb,
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="helix-mq bench simulator speed", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/reference"))
    parser.add_argument("--scale", action="store_true", help="1,000 nodes, 100,000 requests")
    parser.add_argument("--out", type=Path, help="write the results there, as JSON")
    options = parser.parse_args(given)
    found = scale_case(1000, 100_000, 500.0) if options.scale else published_case(options.data)
    print(json.dumps(found, indent=1))
    if options.out is not None:
        command = "helix-mq bench simulator speed" + (" --scale" if options.scale else "")
        write_results(
            options.out, {"machine": machine_summary(), "command": command, "result": found}
        )


if __name__ == "__main__":
    main()
