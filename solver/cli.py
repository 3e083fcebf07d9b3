"""`helix-mq plan` and `helix-mq plan verify`."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from solver.cli_group import WithDefault

if TYPE_CHECKING:
    from solver.problem import Problem
    from solver.search_types import PlanResult, Progress


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
    app.add_typer(group)


def make(
    cluster: Annotated[Path, typer.Argument(help="Cluster file with measured tables (JSON).")],
    method: Annotated[
        str,
        typer.Option(
            help="auto, milp, petals, swarm, homogeneous, separate, separate-leftovers, blocks "
            "or local."
        ),
    ] = "auto",
    time_limit: Annotated[float, typer.Option(help="Seconds for the whole search.")] = 60.0,
    seed: Annotated[int, typer.Option(help="For the methods that draw.")] = 0,
    partial_inference: Annotated[
        bool, typer.Option(help="Let a node run only part of its layers for a request.")
    ] = True,
    save: Annotated[Path | None, typer.Option(help="Write the plan to this TOML file.")] = None,
    warm_start: Annotated[Path | None, typer.Option(help="Begin from this saved plan.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Place a model's layers on a cluster so that its max flow is as large as it can be.

    Ctrl-C ends the search; the best plan so far is verified, printed and saved.
    """
    from solver.inputs import read_problem
    from solver.plan_file import read_plan, write_plan
    from solver.search import solve
    from solver.search_types import SolveOptions

    problem = read_problem(cluster)
    options = SolveOptions(
        method=method,  # type: ignore[arg-type]  # SolveOptions checks it, in words
        time_limit_s=time_limit,
        seed=seed,
        partial_inference=partial_inference,
        warm_start=read_plan(warm_start).placement if warm_start is not None else None,
    )
    with _stopped_by_signals() as stop:
        result = solve(problem, options, None if as_json else _show_progress, stop)
    if save is not None:
        write_plan(save, problem.name, result, cluster)
    typer.echo(json.dumps(as_dict(result)) if as_json else describe(problem, result))


def verify_saved(
    saved: Annotated[Path, typer.Argument(metavar="FILE", help="A plan saved by `plan --save`.")],
    cluster: Annotated[
        Path | None, typer.Option(help="Verify against this cluster, not the one it was made for.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Recompute a saved plan from scratch: layers, memory, links, max flow."""
    from solver.inputs import read_problem
    from solver.plan_file import PlanFileError, read_plan
    from solver.verify import verify

    file = read_plan(saved)
    source = cluster or file.cluster
    if source is None:
        raise PlanFileError(f"{saved} names no cluster: give one with --cluster", param="cluster")
    problem = read_problem(source)
    report = verify(problem, file.placement, claimed_tokens_per_s=file.claimed_tokens_per_s)
    if as_json:
        body = {"ok": report.ok, "tokens_per_s": report.tokens_per_s, "faults": report.faults}
        typer.echo(json.dumps(body))
    elif report.ok:
        typer.echo(f"holds: {report.tokens_per_s:.1f} tokens/s")
    else:
        typer.echo("does not hold:\n" + "\n".join(f"  - {fault}" for fault in report.faults))
    if not report.ok:
        raise typer.Exit(1)


def as_dict(result: PlanResult) -> dict[str, object]:
    """The result as others check it; infinities become null."""
    bound = result.upper_bound_tokens_per_s
    slices = result.placement.slices
    return {
        "method": result.method,
        "objective_tokens_per_s": result.objective_tokens_per_s,
        "upper_bound_tokens_per_s": bound if math.isfinite(bound) else None,
        "gap": result.gap if math.isfinite(result.gap) else None,
        "seconds": result.seconds,
        "proven_optimal": result.proven_optimal,
        "bound_reason": result.bound_reason,
        "notes": list(result.notes),
        "placement": {n: [slices[n].first, slices[n].end] for n in result.placement},
        "trace": [
            {
                "seconds": p.seconds,
                "phase": p.phase,
                "incumbent_tokens_per_s": p.incumbent_tokens_per_s,
                "upper_bound_tokens_per_s": p.upper_bound_tokens_per_s,
            }
            for p in result.trace
        ],
    }


def describe(problem: Problem, result: PlanResult) -> str:
    """A table of nodes and layers, and the figures."""
    lines = [f"{problem.name}: {result.objective_tokens_per_s:.1f} tokens/s by {result.method}"]
    bound = result.upper_bound_tokens_per_s
    if result.proven_optimal:
        lines.append(f"proven optimal ({result.bound_reason})")
    elif math.isfinite(bound):
        lines.append(
            f"no placement can pass {bound:.1f} ({result.bound_reason}): gap {result.gap:.1%}"
        )
    lines.append(f"{result.seconds:.1f} s")
    lines.append("")
    for node in sorted(result.placement, key=lambda n: (result.placement.slices[n].first, n)):
        layers = result.placement.slices[node]
        flow = result.flow.node_flow.get(node, 0.0)
        capacity = problem.node(node).tokens_per_s(len(layers))
        bar = " " * (60 * layers.first // problem.num_layers)
        bar += "#" * max(1, 60 * len(layers) // problem.num_layers)
        end = layers.end - 1
        lines.append(
            f"{node:>12.12} {problem.node(node).type_name:>8.8} {layers.first:>4}-{end:<4}"
            f"|{bar:<60}| {flow:9.1f} of {capacity:9.1f}"
        )
    unused = [n.name for n in problem.nodes if n.name not in result.placement.slices]
    if unused:
        lines.append(f"unused: {', '.join(sorted(unused))}")
    return "\n".join([*lines, *result.notes])


def _show_progress(progress: Progress) -> None:
    bound = progress.upper_bound_tokens_per_s
    gap = f", gap {progress.gap:.1%}" if progress.gap is not None else ""
    limit = f", bound {bound:.1f}" if bound is not None else ""
    text = (
        f"{progress.seconds:6.1f} s  {progress.phase}: "
        f"{progress.incumbent_tokens_per_s:.1f} tokens/s{limit}{gap}"
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
