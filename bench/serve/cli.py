"""`helix-mq bench serve`: options into a Job, the run, the result to where it was asked for."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.live_run import OutOption, say
from helix_mq.errors import ConfigError

# Everything else is imported when it is used: every `helix-mq` command reads this file.
if TYPE_CHECKING:
    from bench.serve.types import Job, Target
    from bench.simulator.stats import Objectives

DEFAULT_WORKLOAD = "synthetic:prompt=128,output=64"


def serve(
    url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible endpoint: http://HOST:PORT/v1.")
    ] = None,
    sdk: Annotated[
        str | None, typer.Option(help="Instead: a router's `clients` address, by our SDK.")
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(help="Name of the environment variable that holds the API key.")
    ] = "",
    model: Annotated[str, typer.Option(help="Default: the first that is served.")] = "",
    chat: Annotated[bool, typer.Option("--chat", help="Chats instead of completions.")] = False,
    workload: Annotated[
        str, typer.Option(help="Lengths, and a trace's times: as in docs/workloads.md.")
    ] = DEFAULT_WORKLOAD,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Always so many requests under way.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Poisson arrivals: requests per second.")
    ] = None,
    ramp: Annotated[
        str | None, typer.Option(help="FROM:TO:SECONDS; Poisson arrivals at a changing rate.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Arrivals at the workload's own times.")
    ] = False,
    requests: Annotated[
        int | None, typer.Option(min=1, max=100_000_000, help="Measure so many.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, max=604_800, help="Send none after so long.")
    ] = None,
    warmup: Annotated[
        int, typer.Option(min=0, max=100_000, help="Requests before, which do not count.")
    ] = 8,
    deadline: Annotated[
        float, typer.Option(min=0.01, max=86_400, help="Seconds; what takes longer is late.")
    ] = 600.0,
    goodput: Annotated[
        list[str] | None,
        typer.Option(help="ttft:2.0, tpot:0.1 or e2el:30, in seconds; may be repeated."),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(help="As many tokens as asked for (`ignore_eos`); else it is wrong."),
    ] = True,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    extra: Annotated[
        list[str] | None, typer.Option(help="FIELD=JSON in each HTTP request; may be repeated.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Model folder; prompts then have the exact length.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, lengths and prompts.")] = 1,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Load processes that share the work.")
    ] = 1,
    key: Annotated[Path | None, typer.Option(help="SDK: this client's NAME.key file.")] = None,
    server_key: Annotated[Path | None, typer.Option(help="SDK: the router's NAME.pub.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="SDK: no keys, on a network you trust.")
    ] = False,
    detailed: Annotated[
        bool, typer.Option("--detailed", help="Each request's figures in the result, too.")
    ] = False,
    out: OutOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .svg or .png file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Load an endpoint and measure it: latencies, throughput, goodput, and what went wrong.

    Ends with code 1 if no request was served.
    """
    from bench.serve.options import Ways, http_target, limits, sdk_target
    from bench.serve.report import parse_goodput
    from bench.serve.types import Closed, Job
    from bench.simulator.plots_file import check_path
    from bench.traces.workload import open_workload
    from helix_mq.process import run

    if (url is None) == (sdk is None):
        raise ConfigError("give --url http://HOST:PORT/v1, or --sdk tcp://HOST:PORT", param="url")
    arrivals = Ways(concurrency, rate, ramp, trace).arrivals()
    last, last_s = limits(arrivals, workload, requests, seconds)
    if isinstance(arrivals, Closed) and processes > arrivals.at_once:
        raise ConfigError(
            f"processes={processes}: more than the {arrivals.at_once} requests under way",
            param="processes",
        )
    target: Target
    if url is not None:
        target = http_target(url, model, chat, api_key_env, extra or [])
    else:
        target = sdk_target(sdk or "", model, chat, key, server_key, insecure)
    objectives = parse_goodput(goodput or [])
    if plot is not None:
        check_path(plot)
    # A file that is missing or damaged is told here, once, and not by each process.
    next(open_workload(workload, seed).lengths())
    job = Job(
        target=target,
        workload=workload,
        arrivals=arrivals,
        seed=seed,
        requests=last,
        seconds=last_s,
        warmup=warmup,
        deadline_s=deadline,
        exact=exact,
        temperature=temperature,
        tokenizer=str(tokenizer or ""),
    )
    wanted = Wanted(processes, objectives, detailed, out, plot, as_json)

    async def main(stop: asyncio.Event) -> None:
        await _run(job, wanted, stop)

    run(main)


@dataclass(frozen=True, slots=True)
class Wanted:
    processes: int
    objectives: Objectives | None
    detailed: bool
    out: Path | None
    plot: Path | None
    as_json: bool


async def _run(job: Job, wanted: Wanted, stop: asyncio.Event) -> None:
    from msgspec.structs import replace

    from bench.planner_common import write_results
    from bench.serve.models import first_model
    from bench.serve.options import in_words
    from bench.serve.plot import plot_serve
    from bench.serve.report import report
    from bench.serve.result import result_of
    from bench.serve.run import ServeRun
    from bench.serve.show import describe, progress
    from bench.serve.types import HttpTarget

    if isinstance(job.target, HttpTarget) and not job.target.model:
        model = await first_model(job.target.url, job.target.key_env)
        job = replace(job, target=replace(job.target, model=model))
    with progress(job.requests) as show:
        measured = await ServeRun(job, wanted.processes, say, show).run(stop)
    found = report(measured, wanted.objectives)
    body = result_of(job, found, measured, wanted.detailed)
    if wanted.out is not None:
        write_results(wanted.out, body)
    if wanted.plot is not None:
        plot_serve(found, wanted.plot, f"{body['model_id']}, {in_words(job.arrivals)}")
    typer.echo(json.dumps(body) if wanted.as_json else describe(found))
    if not found.totals.completed:
        raise typer.Exit(1)
