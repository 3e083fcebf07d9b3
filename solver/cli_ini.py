"""`import` and `export` of the published artifact's ini files: clusters, and plans for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from helix_mq.errors import ConfigError
from solver.figures import shown


def import_cluster(
    cluster: Annotated[Path, typer.Argument(help="The artifact's cluster file (.ini).")],
    profile: Annotated[Path, typer.Argument(help="Its machine profile file (.ini).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: print it.")
    ] = None,
) -> None:
    """Turn the published artifact's cluster into a cluster file.

    Its gbps count as 1e9 bytes per second, which is how it computes.
    """
    from helix_mq.cluster import write_cluster
    from solver import reference_ini

    found = reference_ini.import_cluster(cluster, profile)
    text = write_cluster(found)
    if output is None:
        typer.echo(text, nl=False)
    else:
        _write(output, text)
        typer.echo(f"{output}: {len(found.nodes)} nodes")


def export_cluster(
    cluster: Annotated[Path, typer.Argument(help="Cluster file (TOML).")],
    to: Annotated[Path, typer.Option(help="Cluster file to write (.ini).")],
    profile: Annotated[Path, typer.Option(help="Machine profile file to write (.ini).")],
) -> None:
    """Write a cluster as the published artifact reads it."""
    from helix_mq.cluster import read_cluster
    from solver import reference_ini
    from solver.build import with_usual_vram
    from solver.reference_ini_cluster import write_cluster_file, write_machine_profiles

    export = reference_ini.export_cluster(with_usual_vram(read_cluster(cluster)))
    _write(to, write_cluster_file(export.cluster))
    _write(profile, write_machine_profiles(export.profiles))
    typer.echo(f"{to} and {profile}: {len(export.numbers)} nodes, numbered from 0 in order")


def import_solution(
    solution: Annotated[Path, typer.Argument(help="The artifact's solution file (.ini).")],
    cluster: Annotated[Path, typer.Option(help="The cluster it is for (TOML or JSON).")],
    save: Annotated[Path, typer.Option(help="Plan file to write (TOML).")],
    model: Annotated[Path | None, typer.Option(help="Needed for TOML clusters.")] = None,
) -> None:
    """Turn the published artifact's placement into a plan, and verify it."""
    from solver.cli_options import require_plan_name
    from solver.inputs import Source
    from solver.plan_file import PlanFile, write_plan
    from solver.reference_ini import node_numbers, read_solution
    from solver.verify import require_valid, verify

    require_plan_name(save, "save")
    source = Source(cluster, model)
    problem = source.problem()
    numbers = node_numbers([n.name for n in problem.nodes])
    placement = read_solution(
        solution,
        num_layers=problem.num_layers,
        names=sorted(numbers, key=lambda name: numbers[name]),
    )
    report = verify(problem, placement)
    require_valid(report, str(solution))
    write_plan(save, PlanFile(problem.name, source, placement, "imported", report.tokens_per_s))
    typer.echo(f"{save}: {shown(report.tokens_per_s)} tokens/s")


def export_plan(
    plan: Annotated[Path, typer.Argument(help="A plan saved by `plan --save`.")],
    solution: Annotated[Path, typer.Option(help="Solution file to write (.ini).")],
    simulator: Annotated[
        Path | None, typer.Option(help="Also its simulator's cluster file (.ini).")
    ] = None,
) -> None:
    """Write a plan as the published artifact reads it."""
    from solver.plan_file import PlanFileError, read_plan
    from solver.reference_ini import node_numbers, write_solution
    from solver.reference_ini_simulator import simulator_cluster, write_simulator_cluster

    file = read_plan(plan)
    if file.source is None:
        raise PlanFileError(
            f"{plan} names no cluster, so its nodes have no numbers", param="cluster"
        )
    problem = file.source.problem()
    numbers = node_numbers([n.name for n in problem.nodes])
    _write(solution, write_solution(file.placement, numbers))
    if simulator is not None:
        cluster = simulator_cluster(problem, file.placement, numbers)
        _write(simulator, write_simulator_cluster(cluster))
    typer.echo(f"{solution}: {len(file.placement.slices)} nodes")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written: {e.strerror}", param="output") from None
