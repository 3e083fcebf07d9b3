"""`helix-mq bench chaos`."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.chaos.faults import Kind
from bench.live_run import FolderOption, ModelOption, OutOption, in_folder, say
from helix_mq.errors import ConfigError
from helix_mq.token_return import token_return as known_return

PACKAGES = ("msgspec", "pyzmq", "torch", "uvloop")


def chaos(
    rounds: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="End after so many rounds of faults.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, max=100_000, help="End after so many minutes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the requests, the load and the faults.")] = 1,
    streams: Annotated[int, typer.Option(min=1, max=200, help="Requests under way at once.")] = 32,
    model: ModelOption = None,
    only: Annotated[
        list[str] | None, typer.Option(help="This kind of fault only. May be repeated.")
    ] = None,
    router: Annotated[
        bool, typer.Option("--router", help="Kill the router, too; it keeps a journal then.")
    ] = False,
    token_return: Annotated[
        str, typer.Option(help="The router's setting of this name: auto, direct or router.")
    ] = "auto",
    node_memory: Annotated[str, typer.Option(help="Memory of each node.")] = "160MiB",
    folder: FolderOption = None,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Break a real cluster over and over while requests run, and hold it to its guarantees.

    A router and six nodes run here as processes. Nodes are killed, stopped, drained and cut off,
    one or two at once; each token of each stream is compared with what one undisturbed node
    answers. Ends with code 1 if a guarantee did not hold.
    """
    from helix_mq.process import run

    if rounds is None and minutes is None:
        rounds = 12
    kinds, way = _kinds(only or []), known_return(token_return)

    async def main(stop: asyncio.Event) -> None:
        from bench.chaos.report import ChaosReport
        from bench.chaos.run import ChaosOptions, ChaosRun
        from bench.planner_common import machine_summary, write_results

        async def work(path: Path, place: Path) -> ChaosReport:
            options = ChaosOptions(
                model=path,
                folder=place,
                seed=seed,
                rounds=rounds,
                minutes=minutes,
                streams=streams,
                only=kinds,
                node_memory=node_memory,
                journal=router or Kind.ROUTER in kinds,
                token_return=way,
            )
            return await ChaosRun(options, say, keep).run()

        command, machine = f"helix-mq {shlex.join(sys.argv[1:])}", machine_summary(PACKAGES)

        def body_of(report: ChaosReport) -> dict[str, object]:
            return {"command": command, "machine": machine, **report.as_dict()}

        def keep(report: ChaosReport) -> None:
            # After each round: a run that is interrupted leaves what it has.
            if out is not None:
                write_results(out, body_of(report))

        report = await in_folder(model, folder, stop, work)
        keep(report)
        typer.echo(json.dumps(body_of(report)) if as_json else report.text())
        if not report.passed:
            raise typer.Exit(1)

    run(main)


def _kinds(names: list[str]) -> tuple[Kind, ...]:
    try:
        return tuple(Kind(name) for name in names)
    except ValueError:
        known = ", ".join(Kind)
        raise ConfigError(
            f"--only {' '.join(names)}: the kinds are {known}", param="only"
        ) from None
