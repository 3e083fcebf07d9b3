"""`helix-mq simulate` and `helix-mq simulate compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.simulator.cli_compare import compare
from helix_mq.cli.group import WithDefault


class WithRun(WithDefault):
    """`helix-mq simulate CLUSTER` is `helix-mq simulate run CLUSTER`."""

    default_command = "run"


def register(app: typer.Typer) -> None:
    """Adds the `simulate` commands to the command line."""
    group = typer.Typer(
        name="simulate",
        cls=WithRun,
        help="Serve a workload on a virtual clock: `simulate CLUSTER`; `simulate compare CLUSTER`.",
        no_args_is_help=True,
    )
    group.command(name="run")(run)
    group.command(name="compare")(compare)
    app.add_typer(group)


def run(
    cluster: Annotated[
        Path | None,
        typer.Argument(help="Cluster file; may be left out where the plan names its own."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="config.json, model folder or GGUF file; needed for TOML clusters."),
    ] = None,
    placement: Annotated[
        str,
        typer.Option(help="A saved plan (.toml), a method, or a placement published with a JSON."),
    ] = "petals",
    scheduler: Annotated[
        str, typer.Option(help="maxflow, swarm, random or shortest-queue.")
    ] = "maxflow",
    prefer_near: Annotated[
        bool, typer.Option(help="maxflow: far links only for what near ones do not carry.")
    ] = True,
    mode: Annotated[
        str,
        typer.Option(
            help="offline (always full), online (requests come by the clock) or closed (a fixed "
            "number at once)."
        ),
    ] = "offline",
    workload: Annotated[
        str | None,
        typer.Option(
            help="KIND:PATH,option=value: azure-conv, azure-code, sharegpt, reference or "
            "synthetic. By default lengths around those that the plan was made for, 1 a second."
        ),
    ] = None,
    duration: Annotated[float, typer.Option(help="Seconds measured.")] = 600.0,
    warmup: Annotated[float, typer.Option(help="Seconds before that.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    at_once: Annotated[int, typer.Option(help="closed: requests in the system.")] = 64,
    expected_output: Annotated[
        int, typer.Option(help="Output tokens that the router books KV room for.")
    ] = 256,
    kv_high_water: Annotated[
        float, typer.Option(help="Share of a node's KV room that admission may book.")
    ] = 0.9,
    prefill_tokens: Annotated[
        int | None,
        typer.Option(help="Prompt tokens per step; else each node derives it from its times."),
    ] = None,
    token_return: Annotated[
        str, typer.Option(help="auto, direct or router: as in router.toml.")
    ] = "auto",
    fault: Annotated[
        list[str] | None,
        typer.Option(
            # A colon before and after a letter would be read as an emoji's name.
            help="kill:NODE@S, cut:NODE:NODE2@S, slow:NODE:FACTOR@S, restore:NODE@S or "
            "join:NODE@S, S in seconds. May be repeated."
        ),
    ] = None,
    ttft: Annotated[
        float | None, typer.Option(help="Goodput: seconds to the first token, at most.")
    ] = None,
    tpot: Annotated[
        float | None, typer.Option(help="Goodput: seconds per token after it, at most.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the run: .svg or .png.")] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="native: what we run. reference: the published simulator's semantics and load, "
            "for a published cluster."
        ),
    ] = "native",
    in_flight: Annotated[
        int | None, typer.Option(help="reference: requests held offline, but under maxflow.")
    ] = None,
    rate: Annotated[
        int | None, typer.Option(help="reference: the published online trace, by its name.")
    ] = None,
    reference_case: Annotated[
        str | None,
        typer.Option(help="reference: a published case by name, e.g. ex_offline_maxflow."),
    ] = None,
    data: Annotated[Path, typer.Option(help="reference: the folder of the published data.")] = Path(
        "../shared/reference"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Serve a workload on a cluster without the cluster: throughput, latencies, utilisation.

    The router's and the nodes' own decisions run on a virtual clock; step times come from the
    cluster's tables, links have bandwidth, latency and queues.
    """
    if reference_case is not None or profile != "native":
        from bench.simulator.cli_reference import Load, published_case, reference_run

        if reference_case is not None:
            typer.echo(published_case(reference_case, data, as_json=as_json))
            return
        load = Load(profile, scheduler, mode, in_flight, rate)
        typer.echo(reference_run(cluster, placement, data, load, as_json=as_json))
        return
    from bench.simulator.cli_inputs import parse_fault, read_inputs
    from bench.simulator.cli_show import ProgressLine, describe, objectives_of
    from bench.simulator.native import Workload, simulate
    from bench.simulator.plots import plot_report
    from bench.simulator.plots_file import check_path
    from bench.simulator.records import Recorder
    from bench.simulator.settings import Mode, Options, settings_of
    from bench.simulator.stats import report
    from bench.traces.workload import open_workload

    if plot is not None:
        check_path(plot)
    settings = settings_of(
        Options(
            mode=mode,
            scheduler=scheduler,
            prefer_near=prefer_near,
            duration_s=duration,
            warmup_s=warmup,
            seed=seed,
            expected_output_tokens=expected_output,
            kv_high_water=kv_high_water,
            prefill_tokens=prefill_tokens,
            faults=tuple(parse_fault(text) for text in fault or ()),
            at_once=at_once,
            token_return=token_return,
        )
    )
    objectives = objectives_of(ttft, tpot)
    inputs = read_inputs(cluster, model, [placement], seed)
    source = open_workload(workload or inputs.default_workload(), seed)
    requests = source.arrivals() if settings.mode is Mode.ONLINE else source.lengths()
    recorder = Recorder(warmup, duration)
    with ProgressLine(quiet=as_json) as progress:
        result = simulate(
            inputs.problem,
            inputs.placements[placement],
            inputs.step_times,
            Workload(requests),
            settings,
            recorder,
            progress,
        )
    found = report(recorder, objectives)
    if plot is not None:
        plot_report(found, plot)
    if as_json:
        typer.echo(json.dumps({"run": result.as_dict(), **found.as_dict()}))
    else:
        typer.echo(f"{found.describe()}\n\n{describe(result)}")
