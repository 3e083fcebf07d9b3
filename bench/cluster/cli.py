"""`helix-mq bench cluster`."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.live_run import FolderOption, OutOption, say

SCHEDULERS = ("maxflow", "swarm", "random", "shortest-queue")
DEFAULT_WORKLOAD = "synthetic:prompt=lognormal(5.0,0.6),output=lognormal(4.0,0.5),max_prompt=1000"
PACKAGES = ("msgspec", "pyzmq", "torch", "uvloop")


def cluster(
    cluster_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CLUSTER]",
            help="Cluster file (TOML); may be left out where the plan names its own.",
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="config.json or model folder: only its sizes are used.")
    ] = None,
    placement: Annotated[str, typer.Option(help="A saved plan (.toml), or a method.")] = "petals",
    scheduler: Annotated[
        list[str] | None,
        typer.Option(help="maxflow, swarm, random or shortest-queue. May be repeated; all four."),
    ] = None,
    workload: Annotated[
        str, typer.Option(help="Lengths, as for `simulate`; times are not used.")
    ] = DEFAULT_WORKLOAD,
    at_once: Annotated[int, typer.Option(min=1, max=1000, help="Requests at any time.")] = 24,
    duration: Annotated[float, typer.Option(min=1, help="Seconds measured, per scheduler.")] = 45.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before that.")] = 15.0,
    seed: Annotated[int, typer.Option(help="Of lengths and of schedulers that draw lots.")] = 0,
    token_return: Annotated[
        str, typer.Option(help="auto, direct or router: as in router.toml.")
    ] = "auto",
    prefer_near: Annotated[
        bool, typer.Option(help="maxflow: far links only for what near ones do not carry.")
    ] = True,
    slower: Annotated[
        float, typer.Option(help="Emulate the cluster so many times slower than it is.")
    ] = 1.0,
    overhead_ms: Annotated[
        float, typer.Option(min=0, help="What the simulator adds to each step.")
    ] = 0.0,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Ends with code 1 if throughputs differ by more.")
    ] = 0.15,
    folder: FolderOption = None,
    out: OutOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the comparison: .svg or .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Emulate a cluster of unequal machines here, live, beside the simulator.

    A router and nodes run as processes with real sockets and a small real model; each node's steps
    last what the cluster's tables say, each link has its bandwidth and latency. Every scheduler
    serves the same requests with the same placement, live and simulated.
    """
    from bench.cluster.compare import compare
    from bench.cluster.result import Pair, table
    from bench.cluster.run import Trial
    from bench.cluster.subject import read_subject
    from bench.planner_common import machine_summary, write_results
    from bench.simulator.plots_file import check_path
    from helix_mq.process import run
    from helix_mq.token_return import token_return as checked_way

    if plot is not None:
        check_path(plot)
    schedulers = _schedulers(scheduler or [])
    way = checked_way(token_return)
    trial = Trial(workload, at_once, warmup, duration, seed, overhead_ms / 1e3, way, prefer_near)
    pairs: list[Pair] = []
    machine = machine_summary(PACKAGES)
    with tempfile.TemporaryDirectory(prefix="helix-mq-bench-") as temporary:
        place = folder or Path(temporary)
        subject = read_subject(cluster_file, model, placement, seed, place, slower)

        def body_of(done: Sequence[Pair]) -> dict[str, object]:
            return {
                "benchmark": "cluster",
                "command": f"helix-mq {shlex.join(sys.argv[1:])}",
                "machine": machine,
                "cluster": subject.as_dict(),
                "trial": {**trial.as_dict(), "slower": slower},
                "rows": [pair.row() for pair in done],
                "runs": [pair.as_dict() for pair in done],
            }

        def keep(done: Sequence[Pair]) -> None:
            # After each scheduler: a run that is interrupted leaves what it has.
            if out is not None:
                write_results(out, body_of(done))

        async def main(stop: asyncio.Event) -> None:
            pairs.extend(await compare(subject, schedulers, trial, place, stop, say, keep))

        run(main)
    if plot is not None:
        from bench.cluster.plot import plot_pairs

        title = f"{subject.problem.name}: {at_once} requests at once, live and simulated"
        plot_pairs(pairs, plot, title)
    typer.echo(json.dumps(body_of(pairs)) if as_json else table(pairs))
    failed = [p.scheduler for p in pairs if p.faults() or abs(p.difference) > tolerance]
    if failed:
        say(f"not within {tolerance:.0%}, or not valid: {', '.join(failed)}")
        raise typer.Exit(1)


def _schedulers(names: list[str]) -> tuple[str, ...]:
    from helix_mq.errors import ConfigError

    for name in names:
        if name not in SCHEDULERS:
            raise ConfigError(
                f"--scheduler {name}: is not one of {', '.join(SCHEDULERS)}", param="scheduler"
            )
    return tuple(names) or SCHEDULERS
