"""`python -m bench.pipeline`: what a pipeline of processes costs beside its model.

Two questions, on one machine with real processes. How much of the tokens/s of one node do three
reach that share the same cores and the same layers, each with as many threads as there are cores,
as by default? Both clusters stand side by side and decode in turns of seconds, streams all open at
once: what else a machine does changes by the minute, so rates are compared turn by turn. Beside
them one process and three that only compute and pass on (`bench.pipeline_bare`) say how much of
that any pipeline in these processes would lose.
And what do router and nodes compute per decode step apart from the threads that compute layers: the
processor time of their event loops, which make plain steps ready and frames of what comes of them,
and of ZeroMQ's threads, by the kernel's books of each thread, less what they take while nothing is
decoded. The bare processes' time beside their compiled steps is taken seconds later.
Where the device's thread has a step it does more than the model; what that is per step is measured
in this process, as processor time of Engine.run less that of the model's forward pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import psutil
import typer

from bench.chaos.cluster import ROUTER, ChaosCluster, Plan
from bench.ending import run_to_its_end
from bench.live_run import say
from bench.pipeline_bare import BarePipeline
from bench.planner_common import machine_summary, write_results
from bench.samplings import SAMPLINGS
from helix_mq.client import Client
from helix_mq.models.config import ModelConfig
from helix_mq.models.resolve import find_demo_gguf, resolve_model
from helix_mq.sdk.options import RequestOptions

PACKAGES = ("msgspec", "pyzmq", "torch", "uvloop")
NODES = 3
PROMPT_TOKENS = 32
START_S = 240.0
DEADLINE_S = 600.0
IDLE_S = 5.0
BARE = {"bare one": 1, "bare three": NODES}
"""Stages of the pipelines that stand for the least it could cost; they draw no tokens."""


@dataclass(frozen=True, slots=True)
class Used:
    """Processor seconds since the start, summed over threads. `loop`: event loops and ZeroMQ's
    threads; `device`: the others, which compute."""

    router_s: float
    loop_s: float
    device_s: float

    def since(self, before: Used) -> Used:
        return Used(
            self.router_s - before.router_s,
            self.loop_s - before.loop_s,
            self.device_s - before.device_s,
        )

    def beside(self, idle: Used, times: float) -> Used:
        """What is left when so many times `idle` is taken off."""
        return Used(
            self.router_s - idle.router_s * times,
            self.loop_s - idle.loop_s * times,
            self.device_s - idle.device_s * times,
        )


@dataclass(frozen=True, slots=True)
class Load:
    """`rounds` with processes of their own each, in them `turns` of either cluster, in which each
    number of `streams` decodes for `turn_s`, in answers of `tokens` by one of SAMPLINGS."""

    streams: tuple[int, ...]
    tokens: int
    rounds: int
    turns: int
    turn_s: float
    sampling: str


@dataclass(frozen=True, slots=True)
class Turn:
    round: int
    turn: int
    streams: int
    nodes: str
    tokens_per_s: float


def used_by(cluster: ChaosCluster) -> Used:
    """By the scheduler's own books, in nanoseconds: the usual ones count in steps of 10 ms."""
    router_s = loop_s = device_s = 0.0
    for name, child in cluster.children.items():
        for thread in Path(f"/proc/{child.pid}/task").iterdir():
            try:
                spent_s = int((thread / "schedstat").read_text().split()[0]) / 1e9
                is_zmq = (thread / "comm").read_text().startswith("ZMQ")
            except OSError:
                # It has ended.
                continue
            if name == ROUTER:
                router_s += spent_s
            elif thread.name == str(child.pid) or is_zmq:
                loop_s += spent_s
            else:
                device_s += spent_s
    return Used(router_s, loop_s, device_s)


async def decode(
    client: Client, streams: int, tokens: int, seed: int, sampling: str = "greedy"
) -> tuple[float, int]:
    """Tokens/s of decodes while all streams run, and how many tokens that were: from when the last
    stream has its first token until the first one ends."""
    begun, ended = 0, asyncio.Event()
    all_begun = asyncio.Event()
    times: list[float] = []

    async def one(number: int) -> None:
        nonlocal begun
        first = True
        prompt = [(seed * 977 + number * 131 + i * 7) % 200 + 5 for i in range(PROMPT_TOKENS)]
        options: RequestOptions = {
            **SAMPLINGS[sampling],
            "max_tokens": tokens,
            "ignore_eos": True,
            "deadline_s": DEADLINE_S,
            "seed": seed,
        }
        async for _ in client.stream(prompt, **options):
            times.append(time.perf_counter())
            if first:
                first, begun = False, begun + 1
                if begun == streams:
                    all_begun.set()
        ended.set()

    running = [asyncio.create_task(one(n)) for n in range(streams)]
    await all_begun.wait()
    started_s = time.perf_counter()
    await ended.wait()
    ended_s = time.perf_counter()
    await asyncio.gather(*running)
    count = sum(started_s < at_s <= ended_s for at_s in times)
    return count / (ended_s - started_s), count


async def bare_rate(bare: BarePipeline, load: Load, streams: int, _seed: int) -> float:
    return await bare.rate(streams, load.turn_s)


async def rate_of(client: Client, load: Load, streams: int, seed: int) -> float:
    """Tokens/s of decodes, of as many sets of streams as the time of a turn takes."""
    seconds, count = 0.0, 0
    while seconds < load.turn_s:
        rate, tokens = await decode(client, streams, load.tokens, seed, load.sampling)
        seconds, count, seed = seconds + tokens / rate, count + tokens, seed + 1
    return count / seconds


async def steps_cost(
    client: Client, cluster: ChaosCluster, streams: int, load: Load
) -> dict[str, float]:
    """Processor time per token of whole requests, nearly all of it decodes."""
    before, idle_from_s = used_by(cluster), time.perf_counter()
    await asyncio.sleep(IDLE_S)
    idle, idle_s = used_by(cluster).since(before), time.perf_counter() - idle_from_s
    before, from_s = used_by(cluster), time.perf_counter()
    rate, sets = 0.0, 0
    while time.perf_counter() - from_s < load.turn_s:
        seed = streams + sets
        rate, _ = await decode(client, streams, load.tokens, seed, load.sampling)
        sets += 1
    # Signs of life, probes and figures are paid by the second, whatever is decoded.
    spent = used_by(cluster).since(before).beside(idle, (time.perf_counter() - from_s) / idle_s)
    count = sets * streams * load.tokens
    nodes = len(cluster.names)
    return {
        "idle_us_per_s": (idle.router_s + idle.loop_s) / idle_s * 1e6,
        "streams": streams,
        "tokens": count,
        "tokens_per_s": rate,
        "router_us_per_token": spent.router_s / count * 1e6,
        "loop_us_per_token_and_node": spent.loop_s / count / nodes * 1e6,
        "outside_device_us_per_token": (spent.router_s + spent.loop_s) / count * 1e6,
        "device_us_per_token_and_node": spent.device_s / count / nodes * 1e6,
    }


def thirds(layers: int) -> dict[str, str]:
    cuts = [layers * n // NODES for n in range(NODES + 1)]
    return {f"n{at}": f"{a}:{b}" for at, (a, b) in enumerate(pairwise(cuts))}


def plan_of(model: Path, slices: Mapping[str, str], threads: int, dtype: str) -> Plan:
    return Plan(
        model=model,
        slices=slices,
        node_memory="1200MiB",
        settings="speculation.enabled = false\n",
        gates=False,
        log_level="warning",
        # Of OpenMP, which has one in these children unless told otherwise.
        environment={"OMP_NUM_THREADS": str(threads)},
        node_threads=threads,
        node_dtype=dtype,
    )


async def compare(
    model: Path,
    folder: Path,
    load: Load,
    dtype: str,
    keep: Callable[[dict[str, object]], None],
) -> dict[str, object]:
    """`keep` is told of the rates after each round."""
    layers = ModelConfig.from_folder(model).num_layers
    cores = psutil.cpu_count() or 1
    plans = {
        "one": plan_of(model, {"whole": f"0:{layers}"}, cores, dtype),
        "three": plan_of(model, thirds(layers), cores, dtype),
    }
    turns: list[Turn] = []
    costs: list[dict[str, float]] = []
    for number in range(load.rounds):
        async with contextlib.AsyncExitStack() as stack:
            runs: dict[str, Callable[[int, int], Awaitable[float]]] = {}
            clusters = {
                name: await stack.enter_async_context(
                    ChaosCluster(plan, folder / f"{name}{number}")
                )
                for name, plan in plans.items()
            }
            clients: dict[str, Client] = {}
            for name, cluster in clusters.items():
                await cluster.whole(START_S)
                clients[name] = await stack.enter_async_context(Client(cluster.clients))
                await decode(clients[name], 2, 8, seed=99)
                runs[name] = partial(rate_of, clients[name], load)
            bare = None
            for name, stages in BARE.items() if load.sampling == "greedy" else ():
                bare = BarePipeline(
                    *(model, stages, max(load.streams), load.tokens, cores, dtype),
                    folder / f"{name}{number}.log",
                )
                await stack.enter_async_context(bare)
                runs[name] = partial(bare_rate, bare, load)
            for turn in range(load.turns):
                # Now one goes first, now the other.
                for name in runs if turn % 2 == 0 else reversed(runs):
                    for n in load.streams:
                        rate = await runs[name](n, turn)
                        turns.append(Turn(number, turn, n, name, rate))
                        say(f"round {number + 1}.{turn + 1}, {name}, {n} streams: {rate:.1f}/s")
            if number == load.rounds - 1:
                for n in load.streams:
                    costs.append(await steps_cost(clients["three"], clusters["three"], n, load))
                    # Of those that were started last: three.
                    if bare is not None:
                        us = await bare.hop_us_per_token(n, load.turn_s)
                        costs[-1]["bare_us_per_token_and_node"] = us
        found: dict[str, object] = {
            "rates": rates_of(turns, load.streams),
            "bare": rates_of(turns, load.streams, tuple(BARE)),
            "costs": costs,
            "turns": [asdict(turn) for turn in turns],
        }
        keep({**found, "rounds": number + 1})
    return found


def rates_of(
    turns: Sequence[Turn], streams: Sequence[int], names: tuple[str, ...] = ("one", "three")
) -> list[dict[str, object]]:
    """Medians over the turns, and quartiles of what the second of `names` had of the first's rate
    in each. Nothing of those that had no turn."""
    found: list[dict[str, object]] = []
    for n in streams:
        one, three = (
            [turn.tokens_per_s for turn in turns if turn.streams == n and turn.nodes == nodes]
            for nodes in names
        )
        if not one:
            continue
        ratios = [b / a for a, b in zip(one, three, strict=True)]
        spread = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        found.append(
            {
                "streams": n,
                "one_tokens_per_s": statistics.median(one),
                "three_tokens_per_s": statistics.median(three),
                "three_over_one": statistics.median(ratios),
                "three_over_one_quartiles": [spread[0], spread[2]],
            }
        )
    return found


def main(
    model: Annotated[Path | None, typer.Option(help="Default: the demonstration model.")] = None,
    streams: Annotated[str, typer.Option(help="Requests at once, by commas.")] = "1,8,32",
    tokens: Annotated[int, typer.Option(min=8, help="Of each answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Fresh processes each.")] = 2,
    turns: Annotated[int, typer.Option(min=1, max=50, help="Of each cluster in a round.")] = 6,
    turn_s: Annotated[float, typer.Option(min=0.1, max=60, help="Of decoding, for each.")] = 2.0,
    sampling: Annotated[str, typer.Option(help=f"{'; '.join(SAMPLINGS)}.")] = "greedy",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of the nodes.")] = "bfloat16",
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """One node and three on the same cores, and what a step costs beside the model."""
    from bench.pipeline_engine import engine_cost

    if sampling not in SAMPLINGS:
        raise typer.BadParameter(f"{sampling!r} is none of: {'; '.join(SAMPLINGS)}")
    folder = resolve_model(model if model is not None else find_demo_gguf())
    counts = [int(n) for n in streams.split(",")]
    body: dict[str, object] = {
        "command": f"python -m bench.pipeline {' '.join(sys.argv[1:])}".strip(),
        "machine": machine_summary(PACKAGES),
        "model": folder.name,
        "dtype": dtype,
        "tokens": tokens,
        "rounds": rounds,
        "sampling": sampling,
    }
    load = Load(tuple(counts), tokens, rounds, turns, turn_s, sampling)

    def keep(found: dict[str, object]) -> None:
        if out is not None:
            write_results(out, body | found)

    with tempfile.TemporaryDirectory(prefix="helix-mq-pipeline-") as place:
        found = run_to_its_end(compare(folder, Path(place), load, dtype, keep))
    found["engine"] = [engine_cost(folder, n, dtype, how) for how in SAMPLINGS for n in counts]
    keep(found)
    for rows in (found["rates"], found["bare"], found["costs"], found["engine"]):
        assert isinstance(rows, list)
        for row in rows:
            print(row)


if __name__ == "__main__":
    typer.run(main)
