"""`python -m bench.overload`, `helix-mq bench overload`: a real cluster under 1x and 10x its load.

Measures the capacity closed-loop, then lets requests come as a Poisson process, whatever becomes of
those before: at the capacity, at ten times it, and at it again. What is measured is described in
bench/results/README.md, what is expected in docs/overload.md.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.live_run import FolderOption, ModelOption, OutOption, in_folder, say


def overload(
    seconds: Annotated[float, typer.Option(min=4, max=86_400, help="Of each phase.")] = 120.0,
    model: ModelOption = None,
    node_memory: Annotated[
        str, typer.Option(help="Of each node; bounds how many requests run at once.")
    ] = "4MiB",
    at_once: Annotated[
        int, typer.Option(min=1, max=2000, help="Requests under way for the capacity.")
    ] = 48,
    times: Annotated[float, typer.Option(min=0.1, max=1000, help="Of the capacity.")] = 10.0,
    max_wait_s: Annotated[float, typer.Option(min=0.1, max=3600, help="As in [admission].")] = 4.0,
    ttft_s: Annotated[float, typer.Option(min=0.001, help="Objective: time to first token.")] = 8.0,
    tpot_s: Annotated[float, typer.Option(min=0.001, help="Objective: time per token.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Of arrivals and lengths.")] = 1,
    folder: FolderOption = None,
    out: OutOption = None,
) -> None:
    """Offer a real cluster ten times what it can serve, and see what it does with it.

    A router and three nodes run here as processes, with one thread each. Ends with code 1 if an
    admitted request did not end well.
    """
    from helix_mq.process import run

    async def main(stop: asyncio.Event) -> None:
        from bench.overload_report import Objectives
        from bench.overload_run import SENDERS, OverloadOptions, OverloadRun, Ran
        from bench.planner_common import machine_summary, write_results

        objectives = Objectives(ttft_s, tpot_s)

        async def work(path: Path, place: Path) -> tuple[OverloadOptions, Ran]:
            options = OverloadOptions(
                model=path,
                folder=place,
                seconds=seconds,
                factors=(1.0, times, 1.0),
                at_once=at_once,
                node_memory=node_memory,
                max_wait_s=max_wait_s,
                objectives=objectives,
                seed=seed,
            )
            return options, await OverloadRun(options, say).run()

        options, ran = await in_folder(model, folder, stop, work)
        reports = ran.reports(options.objectives)
        body: dict[str, object] = {
            "command": f"helix-mq bench overload {' '.join(sys.argv[1:])}".replace(
                "overload bench overload", "overload"
            ),
            "machine": machine_summary(SERVING_PACKAGES),
            "model": model.name if model is not None else "tiny random Llama, 6 layers",
            "nodes": ran.slices,
            "kv_pages": ran.total_pages,
            "node_memory": node_memory,
            "objectives": {
                "ttft_s": ttft_s,
                "tpot_s": tpot_s,
                "background": f"ends within {SENDERS[-1].deadline_s:g} s",
            },
            "admission": {"max_wait_s": max_wait_s, "max_waiting": options.max_waiting},
            "prompt_tokens": list(options.prompt_tokens),
            "output_tokens": list(options.output_tokens),
            "seconds": seconds,
            "seed": seed,
            "capacity": {
                "at_once": at_once,
                "output_tokens_per_s": round(ran.capacity_tokens_per_s, 1),
                "requests_per_s": round(ran.capacity_requests_per_s, 2),
            },
            "phases": reports,
            "exit_codes": ran.exit_codes,
        }
        if out is not None:
            write_results(out, body)
        typer.echo(json.dumps(body))
        if any(r["admitted"] != r["admitted_that_ended_well"] for r in reports):
            raise typer.Exit(1)

    run(main)


SERVING_PACKAGES = ("torch", "pyzmq", "uvicorn", "starlette", "uvloop", "msgspec")


if __name__ == "__main__":
    typer.run(overload)
