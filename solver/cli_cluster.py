"""`helix-mq cluster generate` and `helix-mq cluster show`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from helix_mq.errors import ConfigError
from solver.cli_ini import export_cluster, import_cluster


class Shape(StrEnum):
    SINGLE = "single"
    GEO = "geo"


def register(app: typer.Typer) -> None:
    """Adds the `cluster` commands to the command line."""
    group = typer.Typer(
        name="cluster", help="Make and look at cluster files.", no_args_is_help=True
    )
    group.command()(generate)
    group.command()(show)
    group.command(name="import")(import_cluster)
    group.command(name="export")(export_cluster)
    app.add_typer(group)


def generate(
    shape: Annotated[Shape, typer.Argument(help="One region, or several with slow links between.")],
    nodes: Annotated[str, typer.Option(help="How many of each GPU: A100=4,L4=8,T4=12.")],
    regions: Annotated[int, typer.Option(help="Of a geo cluster.")] = 3,
    seed: Annotated[int, typer.Option(help="For what is drawn.")] = 0,
    name: Annotated[str | None, typer.Option(help="The cluster's name.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: print it.")
    ] = None,
) -> None:
    """Write a cluster file like those the published system is evaluated on."""
    from helix_mq.cluster import write_cluster
    from solver.generate import generate_geo, generate_single, parse_counts

    counts = parse_counts(nodes)
    _tell_of_unknown(counts)
    if shape is Shape.SINGLE:
        cluster = generate_single(counts, name or "single")
    else:
        cluster = generate_geo(counts, regions, seed, name or "geo")
    text = write_cluster(cluster)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{output}: cannot be written: {e.strerror}", param="output") from None
    typer.echo(f"{output}: {len(cluster.nodes)} nodes")


def _tell_of_unknown(types: Iterable[str]) -> None:
    """Not refused: measured tables can be added to the file. But a slip is told at once."""
    from solver.catalogue import UnknownMachine, machine

    for name in types:
        try:
            machine(name)
        except UnknownMachine as e:
            typer.echo(f"note: {e}", err=True)


def show(
    file: Annotated[Path, typer.Argument(help="Cluster file (TOML).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Draw a cluster: regions, machines, links."""
    from helix_mq.cluster import read_cluster
    from solver.show import cluster_as_dict, draw_cluster

    cluster = read_cluster(file)
    typer.echo(json.dumps(cluster_as_dict(cluster)) if as_json else draw_cluster(cluster))
