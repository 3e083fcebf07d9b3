"""`helix-mq bench chaos`."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.chaos.faults import Kind
from helix_mq.errors import ConfigError


def chaos(
    rounds: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="End after so many rounds of faults.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, max=100_000, help="End after so many minutes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the requests, the load and the faults.")] = 1,
    streams: Annotated[int, typer.Option(min=1, max=200, help="Requests under way at once.")] = 32,
    model: Annotated[
        Path | None,
        typer.Option(help="Model folder or GGUF file; default: a tiny random one of 6 layers."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="This kind of fault only. May be repeated.")
    ] = None,
    router: Annotated[
        bool, typer.Option("--router", help="Kill the router, too; it keeps a journal then.")
    ] = False,
    node_memory: Annotated[str, typer.Option(help="Memory of each node.")] = "160MiB",
    folder: Annotated[
        Path | None, typer.Option(help="Where logs and settings stay; default: thrown away.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the report there as JSON.")] = None,
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
    kinds = _kinds(only or [])

    async def main(stop: asyncio.Event) -> None:
        from bench.chaos.run import ChaosOptions, ChaosRun
        from bench.chaos.tiny_model import write_tiny_model
        from bench.planner_common import machine_summary, write_results
        from helix_mq.models.resolve import resolve_model

        with tempfile.TemporaryDirectory(prefix="helix-mq-chaos-") as work:
            place = folder or Path(work)
            path = resolve_model(model) if model is not None else write_tiny_model(place / "model")
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
            )
            running = asyncio.create_task(ChaosRun(options, _say).run())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                running.cancel()
            stopping.cancel()
            await asyncio.gather(running, stopping, return_exceptions=True)
            if running.cancelled():
                raise typer.Exit(130)
            report = running.result()
        body = {"machine": machine_summary(), **report.as_dict()}
        if out is not None:
            write_results(out, body)
        typer.echo(json.dumps(body) if as_json else report.text())
        if not report.passed:
            raise typer.Exit(1)

    run(main)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _kinds(names: list[str]) -> tuple[Kind, ...]:
    try:
        return tuple(Kind(name) for name in names)
    except ValueError:
        known = ", ".join(Kind)
        raise ConfigError(
            f"--only {' '.join(names)}: the kinds are {known}", param="only"
        ) from None
