"""Two node processes with half the layers each on one device, against one process with all.

Real routers, nodes and sockets, and a client over the SDK; only the weights are random. The model
has a vocabulary of bytes, so that a tokenizer can be made for it on the spot.
"""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from bench.cluster.machines import Process
from bench.cluster.stand_in import VOCABULARY, write_tokenizer
from bench.ending import run_to_its_end
from bench.engine_gpu.models import config_of, write_config
from bench.engine_gpu.setup import Part, Say, Setup
from helix_mq.client import Client
from helix_mq.demo import free_ports
from helix_mq.errors import LocalError

_WANTED_RATIO = 0.8
_START_S = 150.0
_POLL_S = 0.1
_ROOM = 1.3
"""Of the memory that weights and sequences take: activations, and what the pool rounds up."""


def pipeline(setup: Setup, say: Say) -> Part:
    """Decode tokens/s of both while all requests are at work, and their ratio."""
    layers = setup.config.num_layers
    ways = {
        "one process": {"whole": (0, layers)},
        "two processes": {"first": (0, layers // 2), "second": (layers // 2, layers)},
    }
    found: Part = {}
    for name, slices in ways.items():
        say(f"pipeline: {name}")
        with tempfile.TemporaryDirectory(prefix="helix-mq-bench-") as folder:
            found[name] = run_to_its_end(_Cluster(setup, slices, Path(folder)).measure())
    ratio = found["two processes"]["tokens_per_s"] / found["one process"]["tokens_per_s"]
    return found | {
        "requests": requests(setup),
        "vocabulary": VOCABULARY,
        "ratio": ratio,
        "passed": ratio >= _WANTED_RATIO,
    }


def requests(setup: Setup) -> int:
    return 2 * setup.beside_batch


def tokens_per_s(arrivals: list[list[float]]) -> float:
    """From the times of each request's tokens: those that come while all are at work, by time."""
    begin, end = max(t[0] for t in arrivals), min(t[-1] for t in arrivals)
    if end <= begin:
        raise LocalError("the requests were not at work at the same time: ask for more tokens")
    return sum(begin < at <= end for times in arrivals for at in times) / (end - begin)


class _Cluster:
    def __init__(self, setup: Setup, slices: dict[str, tuple[int, int]], folder: Path) -> None:
        self._setup = setup
        self._slices = slices
        self._folder = folder
        self._answer_tokens = 8 * setup.new_tokens
        self._processes: list[Process] = []

    async def measure(self) -> dict[str, Any]:
        """Leaves no process behind, also when this one is told to end."""
        ports = free_ports(4)
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            await self._start(*ports)
            # Whatever is recorded or allocated once.
            await self._ask(ports[1], self._answer_tokens // 4)
            arrivals = await self._ask(ports[1], self._answer_tokens)
        finally:
            await asyncio.gather(*(process.end() for process in self._processes))
            loop.remove_signal_handler(signal.SIGTERM)
        return {"tokens_per_s": tokens_per_s(arrivals), "nodes": len(self._slices)}

    async def _start(self, control: int, clients: int, data: int, http: int) -> None:
        model = self._folder / "model"
        fields = self._setup.fields | {"vocab_size": VOCABULARY}
        write_config(fields, model)
        write_tokenizer(model)
        placement = "".join(f'{n} = "{a}:{b}"\n' for n, (a, b) in self._slices.items())
        router = self._file(
            "router.toml",
            f'model = "{model}"\nmodel_name = "random"\n'
            f'clients = "tcp://127.0.0.1:{clients}"\ncontrol = "tcp://127.0.0.1:{control}"\n'
            f'data = "tcp://127.0.0.1:{data}"\n[http]\nport = {http}\n'
            f"[placement]\nnodes_expected = {len(self._slices)}\n[placement.nodes]\n{placement}"
            "[speculation]\nenabled = false\n"
            # What nodes can do is known from a few short steps; by that, most would be refused.
            "[admission]\nmax_wait_s = 3600\nrefuse_hopeless = false\n",
        )
        self._add("router", "bench.engine_gpu.router", router)
        for name, (first, end) in self._slices.items():
            node = self._file(
                f"{name}.toml",
                f'name = "{name}"\nrouter = "tcp://127.0.0.1:{control}"\nmodel = "{model}"\n'
                f'device = "{self._setup.device}"\n'
                f'dtype = "{str(self._setup.dtype).removeprefix("torch.")}"\n'
                f"memory = {self._memory(fields, first, end)}\n"
                "drain_s = 0\n[measure]\nat_start = false\n",
            )
            self._add(name, "bench.engine_gpu.node", node)
        for process in self._processes:
            await process.start()
        await self._until_ready(f"http://127.0.0.1:{http}/ready")

    def _memory(self, fields: dict[str, Any], first: int, end: int) -> int:
        """For the weights, and for all requests at their longest."""
        config, itemsize = config_of(fields), self._setup.dtype.itemsize
        share = (end - first) / config.num_layers
        per_token = config.num_layers * config.kv_bytes_per_token_per_layer(itemsize)
        # Pages may hold up to 256 tokens, and the last one of each request is not full.
        tokens = requests(self._setup) * (self._setup.prompts[0] + self._answer_tokens + 256)
        weights = config.slice_weight_bytes(config.all_layers, itemsize)
        return int(_ROOM * (share * (weights + tokens * per_token))) + (64 << 20)

    def _file(self, name: str, text: str) -> str:
        path = self._folder / name
        path.write_text(text, "utf-8")
        return str(path)

    def _add(self, name: str, module: str, *arguments: str) -> None:
        self._processes.append(Process(name, module, arguments, self._folder / f"{name}.log"))

    async def _until_ready(self, url: str) -> None:
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + _START_S
        async with httpx.AsyncClient(timeout=5) as http:
            while True:
                with suppress(httpx.HTTPError):
                    if (await http.get(url)).status_code == 200:
                        return
                for process in self._processes:
                    if not process.running:
                        raise LocalError(f"{process.name} has ended: {process.last_words()}")
                if loop.time() > ends_s:
                    words = "; ".join(f"{p.name}: {p.last_words()}" for p in self._processes)
                    raise LocalError(f"the cluster is not ready after {_START_S:g} s: {words}")
                await asyncio.sleep(_POLL_S)

    async def _ask(self, port: int, tokens: int) -> list[list[float]]:
        """All requests at once; when each one's tokens came."""
        draw = random.Random(tokens)
        prompts = [
            [draw.randrange(256) for _ in range(self._setup.prompts[0])]
            for _ in range(requests(self._setup))
        ]
        async with Client(f"tcp://127.0.0.1:{port}") as client:
            return list(await asyncio.gather(*(_one(client, p, tokens) for p in prompts)))


async def _one(client: Client, prompt: list[int], tokens: int) -> list[float]:
    stream = client.stream(
        prompt, max_tokens=tokens, ignore_eos=True, temperature=0.0, deadline_s=300.0
    )
    async with stream:
        return [time.monotonic() async for token in stream if token.id is not None]
