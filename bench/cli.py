"""`helix-mq bench`: measurements and trials, one sub-command each."""

from __future__ import annotations

import typer

from bench.bus.cli import bus
from bench.chaos.cli import chaos
from bench.cluster.cli import cluster
from bench.engine.cli import engine
from bench.offline_cli import OWN_OPTIONS, planner, simulator
from bench.overload import overload
from bench.report.cli import report
from bench.serve.cli import serve
from bench.serve.compare import compare


def register(app: typer.Typer) -> None:
    """Adds the `bench` group to the command line."""
    group = typer.Typer(name="bench", help="Measure, and put to the test.", no_args_is_help=True)

    group.command(name="bus")(bus)
    group.command(name="chaos")(chaos)
    group.command(name="cluster")(cluster)
    group.command(name="engine")(engine)
    group.command(name="overload")(overload)
    group.command(name="serve")(serve)
    group.command(name="compare")(compare)
    group.command(name="planner", context_settings=OWN_OPTIONS)(planner)
    group.command(name="simulator", context_settings=OWN_OPTIONS)(simulator)
    group.command(name="report")(report)
    app.add_typer(group)
