"""`helix-mq simulate compare`: placements x schedulers x workloads side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bench.simulator.compare import Outcome


def compare(
    workload: Annotated[list[str], typer.Option(help="As for `simulate`. May be repeated.")],
    placement: Annotated[list[str], typer.Option(help="As for `simulate`. May be repeated.")],
    cluster: Annotated[
        Path | None,
        typer.Argument(help="Cluster file; may be left out where a plan names its own."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Needed for TOML clusters.")] = None,
    scheduler: Annotated[
        list[str] | None,
        typer.Option(help="maxflow, swarm, random or shortest-queue. May be repeated."),
    ] = None,
    mode: Annotated[str, typer.Option(help="offline, online or closed (64 at once).")] = "offline",
    duration: Annotated[float, typer.Option(help="Seconds measured.")] = 600.0,
    warmup: Annotated[float, typer.Option(help="Seconds before that.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    token_return: Annotated[
        str, typer.Option(help="auto, direct or router: as in router.toml.")
    ] = "auto",
    ttft: Annotated[float | None, typer.Option(help="Goodput: seconds, at most.")] = None,
    tpot: Annotated[float | None, typer.Option(help="Goodput: seconds, at most.")] = None,
    processes: Annotated[int | None, typer.Option(help="At a time; by default one a core.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the comparison: .svg or .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Simulate every combination, in parallel processes, and draw one table and one figure."""
    from bench.simulator.cli_inputs import read_inputs
    from bench.simulator.cli_show import objectives_of
    from bench.simulator.compare import cases
    from bench.simulator.compare import compare as compare_cases
    from bench.simulator.compare_native import NativeRun
    from bench.simulator.compare_plots import plot_comparison
    from bench.simulator.compare_text import describe
    from bench.simulator.plots_file import check_path
    from bench.simulator.settings import Options, settings_of

    if plot is not None:
        check_path(plot)
    todo = cases(placement, scheduler or ["maxflow"], workload, [seed])
    inputs = read_inputs(cluster, model, placement, seed)
    settings = settings_of(
        Options(
            mode=mode,
            duration_s=duration,
            warmup_s=warmup,
            seed=seed,
            token_return=token_return,
        )
    )
    run = NativeRun(
        inputs.problem,
        inputs.placements,
        inputs.step_times,
        settings,
        objectives_of(ttft, tpot),
    )
    found = compare_cases(todo, run, processes, None if as_json else _show)
    if plot is not None:
        plot_comparison(found, plot)
    typer.echo(json.dumps(found.as_dict()) if as_json else describe(found))
    if all(outcome.error for outcome in found.outcomes):
        raise typer.Exit(1)


def _show(outcome: Outcome, done: int, of: int) -> None:
    state = outcome.error or f"{outcome.wall_s:.1f} s"
    case = outcome.case
    print(
        f"{done}/{of} {case.placement} {case.scheduler} {case.workload}: {state}",
        file=sys.stderr,
        flush=True,
    )
