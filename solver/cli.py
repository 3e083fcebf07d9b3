"""`helix-mq plan` and `helix-mq plan verify`."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from helix_mq.cli.group import WithDefault
from solver.cli_ini import export_plan, import_solution
from solver.figures import percent, shown

if TYPE_CHECKING:
    from solver.search_types import Progress


def register(app: typer.Typer) -> None:
    """Adds the `plan` commands to the command line."""
    group = typer.Typer(
        name="plan",
        cls=WithDefault,
        help="Place a model's layers on a cluster: `plan CLUSTER`; `plan verify FILE`.",
        no_args_is_help=True,
    )
    group.command(name="make")(make)
    group.command(name="verify")(verify_saved)
    group.command(name="import")(import_solution)
    group.command(name="export")(export_plan)
    app.add_typer(group)


def make(
    cluster: Annotated[
        Path, typer.Argument(help="Cluster file: TOML, or JSON with measured tables.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="config.json, model folder or GGUF file; needed for TOML clusters."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="auto, milp, petals, swarm, homogeneous, separate, separate-leftovers, blocks "
            "or local."
        ),
    ] = "auto",
    objective: Annotated[
        str,
        typer.Option(help="max-flow, or serving: what KV room, round trips and batches let pass."),
    ] = "max-flow",
    simulations: Annotated[
        bool, typer.Option(help="serving: rank the best candidates by short simulations.")
    ] = True,
    time_limit: Annotated[float, typer.Option(help="Seconds for the whole search.")] = 60.0,
    seed: Annotated[int, typer.Option(help="For what is drawn at random.")] = 0,
    partial_inference: Annotated[
        bool, typer.Option(help="Let a node run only part of its layers for a request.")
    ] = True,
    add: Annotated[
        list[str] | None,
        typer.Option(help="What if there were more nodes: TYPE@REGION=COUNT. May be repeated."),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="What if this node were gone. May be repeated.")
    ] = None,
    input_tokens: Annotated[float, typer.Option(help="Mean length of a prompt.")] = 750.0,
    output_tokens: Annotated[float, typer.Option(help="Mean length of an answer.")] = 240.0,
    token_return: Annotated[
        str,
        typer.Option(
            help="As in router.toml: auto, direct or router. For the estimate and simulations."
        ),
    ] = "auto",
    solver: Annotated[str, typer.Option(help="Of the milp method: highs or scip.")] = "highs",
    rel_gap: Annotated[float, typer.Option(help="milp: stop at this gap.")] = 1e-6,
    keep_links: Annotated[
        int | None, typer.Option(help="milp: only each node's fastest links, so many each way.")
    ] = None,
    min_bandwidth: Annotated[
        str | None, typer.Option(help='milp: drop slower links, e.g. "10 Mbit/s".')
    ] = None,
    redundant: Annotated[
        bool, typer.Option(help="milp: with constraints that never change the optimum.")
    ] = False,
    symmetry: Annotated[bool, typer.Option(help="milp: order machines that are alike.")] = True,
    warm_start: Annotated[
        str | None, typer.Option(help="Begin from this saved plan, or from this method's.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the plan to this TOML file; what the MILP solver leaves goes into a "
            "folder beside it, ending in .milp."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the plan: .svg or .png.")] = None,
    explain: Annotated[bool, typer.Option(help="Say what limits the plan, and what helps.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Place a model's layers on a cluster so that its max flow is as large as it can be.

    Ctrl-C ends the search; the best plan so far is verified, printed and saved.
    """
    from helix_mq.errors import ConfigError
    from helix_mq.ids import NodeId
    from helix_mq.token_return import token_return as checked_way
    from helix_mq.units import bits_per_s
    from solver.cli_options import (
        files_beside,
        require_plan_name,
        require_seed,
        require_writable,
    )
    from solver.cli_options import warm_start as starting_from
    from solver.cli_show import as_dict, describe
    from solver.explain import explain as explained
    from solver.explain_what_if import parse_addition
    from solver.inputs import Source, read_input
    from solver.judging import find_simulator
    from solver.objective import ServingModel, Workload
    from solver.plan_file import plan_of, write_plan
    from solver.plots import plot_plan, require_plotting
    from solver.search import solve
    from solver.search_types import MilpOptions, SolveOptions

    if plot is not None:
        require_plotting(plot)
        require_writable(plot, "plot")
    if save is not None:
        require_plan_name(save, "save")
    require_seed(seed)
    workload = Workload(input_tokens, output_tokens)
    source = Source(
        cluster=cluster,
        model=model,
        add=tuple(parse_addition(text) for text in add or ()),
        remove=tuple(NodeId(name) for name in remove or ()),
        workload=workload,
    )
    given = read_input(source)
    problem = given.problem
    if min_bandwidth is not None and keep_links is None:
        keep_links = len(problem.nodes)
    try:
        slowest = bits_per_s(min_bandwidth) / 8 if min_bandwidth is not None else 0.0
    except ValueError as e:
        raise ConfigError(f"--min-bandwidth {e}", param="min_bandwidth") from None
    way = checked_way(token_return)
    serving = (
        ServingModel(given.step_times, workload, token_return=way)
        if given.step_times is not None
        else None
    )
    options = SolveOptions(
        method=method,  # type: ignore[arg-type]  # SolveOptions checks it, in words
        objective=objective,  # type: ignore[arg-type]  # likewise
        time_limit_s=time_limit,
        seed=seed,
        partial_inference=partial_inference,
        warm_start=starting_from(warm_start, problem, seed) if warm_start is not None else None,
        serving=serving,
        simulate=find_simulator() if objective == "serving" and simulations else None,
        milp=MilpOptions(
            solver=solver,  # type: ignore[arg-type]  # likewise
            rel_gap=rel_gap,
            keep_links=keep_links,
            keep_links_at_least=1 if keep_links is not None else 0,
            min_link_bytes_per_s=slowest,
            remove_redundant=not redundant,
            break_symmetry=symmetry,
            output_dir=files_beside(save) if save is not None else None,
        ),
    )
    with _stopped_by_signals() as stop:
        result = solve(problem, options, None if as_json else _show_progress, stop)
    if save is not None:
        write_plan(save, plan_of(problem.name, result, source))
    if plot is not None:
        plot_plan(problem, result, plot)
    why = (
        explained(problem, result.placement, result.flow, partial_inference=partial_inference)
        if explain
        else None
    )
    if as_json:
        typer.echo(json.dumps(as_dict(result, why)))
    else:
        typer.echo(describe(problem, result, why))


def verify_saved(
    saved: Annotated[Path, typer.Argument(metavar="FILE", help="A plan saved by `plan --save`.")],
    cluster: Annotated[
        Path | None, typer.Option(help="Verify against this cluster, not the one it was made for.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The model, where the plan does not name it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Recompute a saved plan from scratch: layers, memory, links, max flow."""
    from solver.inputs import Source
    from solver.plan_file import PlanFileError, read_plan
    from solver.verify import verify

    file = read_plan(saved)
    source = Source(cluster, workload=file.workload) if cluster is not None else file.source
    if source is None:
        raise PlanFileError(f"{saved} names no cluster: give one with --cluster", param="cluster")
    known = file.source.model if file.source is not None else None
    problem = replace(source, model=model or source.model or known).problem()
    report = verify(problem, file.placement, claimed_tokens_per_s=file.claimed_tokens_per_s)
    if as_json:
        body = {"ok": report.ok, "tokens_per_s": report.tokens_per_s, "faults": report.faults}
        typer.echo(json.dumps(body))
    elif report.ok:
        typer.echo(f"holds: {shown(report.tokens_per_s)} tokens/s")
    else:
        typer.echo("does not hold:\n" + "\n".join(f"  - {fault}" for fault in report.faults))
    if not report.ok:
        raise typer.Exit(1)


def _show_progress(progress: Progress) -> None:
    bound = progress.upper_bound_tokens_per_s
    gap = f", gap {percent(progress.gap)}" if progress.gap is not None else ""
    limit = f", bound {shown(bound)}" if bound is not None else ""
    text = (
        f"{progress.seconds:6.1f} s  {progress.phase}: "
        f"{shown(progress.incumbent_tokens_per_s)} tokens/s{limit}{gap}"
    )
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Ctrl-C or SIGTERM ends the search with its best so far; a second one ends the process."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
