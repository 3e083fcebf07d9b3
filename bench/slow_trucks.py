"""Why deep pipelines disappoint, and what cures it: one thing changed at a time.

    helix-mq bench simulator trucks [--data ../shared/reference] [--duration 600] [--out FILE.json]

Each published setup is kept full with the published sequence of requests, on our placement with the
largest max flow and with the published step times, by the production router and batcher. `whole`
is what the published system does: prompts in one piece, all waiting decodes in one batch, links
first in first out. Then chunks, then decodes first on links, then batches bounded: `shipped`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.planner_common import machine_summary, write_results
from bench.simulator.native import Workload, simulate
from bench.simulator.records import Recorder
from bench.simulator.settings import NodeSettings, SimSettings
from bench.simulator.stats import report
from bench.simulator.step_times import ChunkCost
from bench.simulator.trial import run_trial
from bench.traces.workload import open_workload
from helix_mq.token_return import TokenReturn
from nodes.batching import BatchLimits
from solver.inputs import Source, read_input
from solver.objective import ServingModel
from solver.reference_json import read_reference_cluster
from solver.search import solve
from solver.search_types import SolveOptions

GEO = "3cluster24_llama70b"
SETUPS = ("single24_llama70b", GEO, "cluster42_llama70b")
PUBLISHED: Mapping[str, tuple[float, float]] = {
    "single24_llama70b": (252.1, 1.15),
    "3cluster24_llama70b": (98.0, 0.96),
    "cluster42_llama70b": (645.6, 0.84),
}
"""Offline decode tokens/s as published, and the median decode latency (s) of the same runs, from
the data's measured.json."""
STRAIGHT_BACK = "shipped, tokens straight back"
ONE_BATCH = 1e6
WHOLE = 8192
TRACE = "traces/trace_offline_seed0_lengths.csv"

VARIANTS: Mapping[str, NodeSettings] = {
    "whole": NodeSettings(
        limits=BatchLimits(prefill_tokens=WHOLE, max_rows=1024, spread=ONE_BATCH),
        derive_budget=False,
        fifo_links=True,
    ),
    "chunks of 128": NodeSettings(
        limits=BatchLimits(prefill_tokens=128, max_rows=1024, spread=ONE_BATCH),
        derive_budget=False,
        fifo_links=True,
    ),
    "chunks by step times": NodeSettings(
        limits=BatchLimits(max_rows=1024, spread=ONE_BATCH), fifo_links=True
    ),
    "and decodes first on links": NodeSettings(limits=BatchLimits(max_rows=1024, spread=ONE_BATCH)),
    "shipped": NodeSettings(),
}
SENSITIVITY: Mapping[str, NodeSettings] = {
    "even shares": NodeSettings(limits=BatchLimits(spread=1.0)),
    "spread 3": NodeSettings(limits=BatchLimits(spread=3.0)),
    "spread 10": NodeSettings(limits=BatchLimits(spread=10.0)),
    "chunks cost 0.2 ms a layer more": NodeSettings(chunk_cost=ChunkCost(per_chunk_s=0.2e-3)),
    "chunks cost 1 ms a layer more": NodeSettings(chunk_cost=ChunkCost(per_chunk_s=1e-3)),
    "chunks and decodes share the weights": NodeSettings(chunk_cost=ChunkCost(shared_weights=True)),
    "chunks as cheap as the table": NodeSettings(chunk_cost=ChunkCost(floor=False)),
    "2 ms around each step": NodeSettings(overhead_s=2e-3),
}


@dataclass(frozen=True, slots=True)
class Job:
    setup: str
    placement: str
    variant: str
    node: NodeSettings
    kv_high_water: float
    data: Path
    duration_s: float
    warmup_s: float
    token_return: TokenReturn = "router"
    """As in the published system, but where that is what is looked at."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run. `times_published`: decode tokens/s over the published figure.

    `convoy_share`: the decode batch that the average token travels in, as a share of all requests
    in flight. `behind_prompts`: of decodes' time in steps, the share in steps with prompt tokens.
    `waiting_for_prompts`: of all time in flight, the share spent waiting at a node while it runs
    prompt tokens that were there before. `busy`: mean over nodes.
    """

    setup: str
    placement: str
    variant: str
    max_flow_tokens_per_s: float
    decode_tokens_per_s: float
    times_published: float
    itl_p50_s: float
    itl_p99_s: float
    published_decode_p50_s: float
    ttft_p50_s: float
    in_flight: float
    decode_batch: float
    convoy_batch: float
    convoy_share: float
    behind_prompts: float
    waiting_for_prompts: float
    busy: float
    cpu_s: float


def run(job: Job) -> Outcome:
    """One simulation, in a process of its own."""
    path = job.data / "clusters" / f"{job.setup}.json"
    given = read_input(Source(path))
    assert given.step_times is not None
    if job.placement != "helix":
        options = SolveOptions(method="blocks", time_limit_s=10.0)
        if job.placement == "serving":
            model = ServingModel(given.step_times, token_return=job.token_return)
            options = SolveOptions(
                objective="serving", time_limit_s=120.0, serving=model, simulate=run_trial
            )
        planned = solve(given.problem, options)
        placement, flow = planned.placement, planned.objective_tokens_per_s
    else:
        published = read_reference_cluster(path).published[job.placement]
        placement, flow = published.placement, published.max_flow_tokens_per_s or 0.0
    core = replace(SimSettings().core, token_return=job.token_return)
    settings = SimSettings(
        core=core,
        duration_s=job.duration_s,
        warmup_s=job.warmup_s,
        node=job.node,
        kv_high_water=job.kv_high_water,
        seed=0,
    )
    recorder = Recorder(job.warmup_s, job.duration_s)
    workload = Workload(open_workload(f"reference:{job.data / TRACE}", 0).lengths())
    ran = simulate(given.problem, placement, given.step_times, workload, settings, recorder)
    found = report(recorder)
    theirs, latency_s = PUBLISHED[job.setup]
    used = [node.utilisation for node in found.nodes if node.steps]
    return Outcome(
        setup=job.setup,
        placement=job.placement,
        variant=job.variant,
        max_flow_tokens_per_s=flow,
        decode_tokens_per_s=found.decode_tokens_per_s,
        times_published=found.decode_tokens_per_s / theirs,
        itl_p50_s=found.itl.p50,
        itl_p99_s=found.itl.p99,
        published_decode_p50_s=latency_s,
        ttft_p50_s=found.ttft.p50,
        in_flight=found.running.mean,
        decode_batch=found.batches.decode_batch,
        convoy_batch=found.batches.convoy_batch,
        convoy_share=found.batches.convoy_share,
        behind_prompts=found.batches.behind_prompts,
        waiting_for_prompts=found.batches.waiting_for_prompts,
        busy=sum(used) / max(1, len(used)),
        cpu_s=ran.cpu_s,
    )


def jobs(data: Path, duration_s: float, warmup_s: float) -> Iterator[Job]:
    """All variants on every setup; published placement and plan for serving as shipped; less KV
    in use for shorter gaps; sensitivity on the first setup."""

    def job(setup: str, placement: str, variant: str, node: NodeSettings, kv: float = 0.9) -> Job:
        return Job(setup, placement, variant, node, kv, data, duration_s, warmup_s)

    for setup in SETUPS:
        for name, node in VARIANTS.items():
            yield job(setup, "ours", name, node)
        for placement in ("helix", "serving"):
            yield job(setup, placement, "shipped", NodeSettings())
        yield job(setup, "serving", "shipped, KV to 60 %", NodeSettings(), 0.6)
    # Where there are regions; in the others going straight saves a millisecond.
    for placement in ("ours", "helix"):
        shipped = job(GEO, placement, STRAIGHT_BACK, NodeSettings())
        yield replace(shipped, token_return="auto")
    for name, node in SENSITIVITY.items():
        yield job(SETUPS[0], "ours", name, node)


def key_of(row: Mapping[str, object]) -> tuple[str, str, str]:
    return str(row["setup"]), str(row["placement"]), str(row["variant"])


def merged(path: Path, outcomes: list[Outcome]) -> list[dict[str, object]]:
    """What the file holds, with these rows new or in place of theirs."""
    old = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []
    rows = {key_of(row): row for row in [*old, *(asdict(outcome) for outcome in outcomes)]}
    return list(rows.values())


def show(outcome: Outcome) -> str:
    return (
        f"{outcome.setup:20} {outcome.placement:6} {outcome.variant:36} "
        f"{outcome.decode_tokens_per_s:7.1f} tokens/s ({outcome.times_published:.2f} x) "
        f"ITL p50 {outcome.itl_p50_s:.2f} s (published {outcome.published_decode_p50_s:.2f}) "
        f"in flight {outcome.in_flight:5.0f} convoy {outcome.convoy_batch:5.0f} "
        f"({outcome.convoy_share:.0%}) waiting for prompts {outcome.waiting_for_prompts:.0%} "
        f"busy {outcome.busy:.0%}"
    )


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Decode tokens/s by variant and setup, the published figure as a line; busy and convoys."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    grid = figure.subplots(2, len(SETUPS), sharex="col", sharey="row")
    short = {name: name.replace("and ", "+ ") for name in VARIANTS}
    by_key = {key_of(row): row for row in rows}
    for column, setup in enumerate(SETUPS):
        mine = [by_key[setup, "ours", name] for name in VARIANTS if (setup, "ours", name) in by_key]
        names = [short[str(row["variant"])] for row in mine]
        theirs = PUBLISHED[setup][0]
        top, below = grid[0][column], grid[1][column]
        top.bar(names, [row["decode_tokens_per_s"] / theirs for row in mine], color="#0072b2")
        top.axhline(1.0, color="#d55e00", label=f"published, {theirs:g} tokens/s")
        top.set_title(setup.replace("_", ", "), fontsize=10)
        top.legend(fontsize=8, loc="upper left")
        below.plot(
            names,
            [row["convoy_share"] for row in mine],
            "o-",
            label="convoy: batch of the average decode / in flight",
            color="#cc79a7",
        )
        below.plot(names, [row["busy"] for row in mine], "s-", label="nodes busy", color="#009e73")
        below.tick_params(axis="x", labelrotation=35, labelsize=8)
        below.set_ylim(0, 1)
    grid[0][0].set_ylabel("decode throughput\n(published = 1)")
    grid[1][0].set_ylabel("share")
    grid[1][0].legend(fontsize=8)
    with rc_context({"svg.hashsalt": "helix-mq", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="helix-mq bench simulator trucks", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/reference"))
    parser.add_argument("--duration", type=float, default=600.0)
    parser.add_argument("--warmup", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="of 'SETUP PLACEMENT VARIANT', a part")
    parser.add_argument("--plot", type=Path, help="of all in --out: .svg or .png")
    parser.add_argument("--out", type=Path, help="merged with what is there")
    arguments = parser.parse_args(given)
    outcomes = []
    with ProcessPoolExecutor(arguments.processes) as pool:
        every = jobs(arguments.data, arguments.duration, arguments.warmup)
        todo = [j for j in every if arguments.only in f"{j.setup} {j.placement} {j.variant}"]
        for i, outcome in enumerate(pool.map(run, todo), 1):
            outcomes.append(outcome)
            print(show(outcome), flush=True)
            print(f"{i} of {len(todo)}", file=sys.stderr, flush=True)
    if arguments.plot is not None and arguments.out is not None:
        plot(merged(arguments.out, outcomes), arguments.plot)
    if arguments.out is not None:
        body: dict[str, object] = {
            "command": f"helix-mq bench simulator trucks --duration {arguments.duration:g}",
            "machine": machine_summary(),
            "rows": merged(arguments.out, outcomes),
        }
        write_results(arguments.out, body)


if __name__ == "__main__":
    main()
