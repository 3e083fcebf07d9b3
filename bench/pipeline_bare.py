"""The least that a pipeline of processes costs: the compiled decode step and blocking pyzmq alone.

    python -m bench.pipeline_bare SPEC.json

Each process has its layers, waits for a message, computes its rows and sends them on, in one
thread: no event loop, no header, no check, no credit, no router and no client. The caches begin
empty, so the tokens mean nothing; what is computed per step is what a node computes. Beside it in
one run stands what our own pipeline reaches: the rest is what a cluster costs.

A message of two parts asks all processes in the ring what their hops cost since they were last
asked: the processor time of this thread outside the compiled step, and that of ZeroMQ's threads.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import zmq

from helix_mq.demo import free_ports
from helix_mq.errors import LocalError
from helix_mq.models.config import ModelConfig
from nodes.tuning import before_torch, tune_process

if TYPE_CHECKING:
    from nodes.model.native.ready import Ready

T = TypeVar("T")

FIRST_POSITION = 32
START_S = 240.0
ALONE_S = 600.0
"""A stage without a message for so long has lost who started it."""


class StageSpec(msgspec.Struct, frozen=True):
    """Layers first..end of the model in `folder`. At most `rows` rows decode the positions from
    FIRST_POSITION on, `tokens` of them, again and again. `take`, `give`: endpoints."""

    folder: str
    first: int
    end: int
    rows: int
    tokens: int
    threads: int
    dtype: str
    take: str
    give: str


class Hops(msgspec.Struct, frozen=True):
    """Of one process: so many tokens, and processor seconds beside their compiled steps."""

    tokens: int
    outside_s: float


def zmq_s() -> float:
    """Processor seconds of this process's ZeroMQ threads, by the scheduler's own books."""
    return sum(
        int((thread / "schedstat").read_text().split()[0]) / 1e9
        for thread in Path("/proc/self/task").iterdir()
        if (thread / "comm").read_text().startswith("ZMQ")
    )


class Stage:
    """What a process computes. Raises LocalError where no compiled step works."""

    def __init__(self, spec: StageSpec) -> None:
        import torch

        from helix_mq.ids import Attempt, RequestId
        from helix_mq.layers import LayerRange
        from nodes.batching import SeqKey
        from nodes.model.slice import ModelSlice

        torch.set_num_threads(spec.threads)
        self._spec = spec
        self._layers = LayerRange(spec.first, spec.end)
        dtype = getattr(torch, spec.dtype)
        model = ModelSlice.load(
            Path(spec.folder), self._layers, device=torch.device("cpu"), dtype=dtype
        )
        most = FIRST_POSITION + spec.tokens
        pages = len(self._layers) * spec.rows * -(-most // model.page_tokens())
        self._cache = model.new_cache(pages)
        decodes = model.decodes(self._cache)
        if decodes is None:
            raise LocalError("no compiled decode step works here, so there is nothing to pipeline")
        self._decodes = decodes
        self._sequences = [SeqKey(RequestId(n), Attempt(0)) for n in range(spec.rows)]
        for sequence in self._sequences:
            self._cache.pool.open(sequence, self._layers)
            self._cache.pool.ensure(sequence, most)
        self._row_bytes = model.config.hidden_size * dtype.itemsize
        self._last = spec.end == model.config.num_layers
        self._steps = 0
        self._ready: Ready | None = None
        self._tokens, self._computed_s = 0, 0.0
        self._asked_s = time.thread_time() + zmq_s()

    def hops(self) -> Hops:
        """Since it was last asked. On the thread that steps."""
        now_s = time.thread_time() + zmq_s()
        hops = Hops(self._tokens, now_s - self._asked_s - self._computed_s)
        self._tokens, self._computed_s, self._asked_s = 0, 0.0, now_s
        return hops

    def step(self, taken: memoryview) -> memoryview | bytes:
        """Token ids (int32) or activations of some rows in; what leaves these layers out."""
        size = self._row_bytes if self._spec.first else 4
        count = taken.nbytes // size
        ready = self._made_ready(taken, count, size)
        began_s = time.thread_time()
        if ready is None or not self._decodes.now(ready):
            raise LocalError("the compiled step refused a row")
        self._computed_s += time.thread_time() - began_s
        self._tokens += count
        self._ready = ready
        if ready.leaving is not None:
            return ready.leaving
        return struct.pack(f"{count}i", *(ready.best or ()))

    def _made_ready(self, taken: memoryview, count: int, size: int) -> Ready | None:
        from nodes.model.native.ready import Given

        position = FIRST_POSITION + self._steps % self._spec.tokens
        self._steps += 1
        before = self._ready
        if (
            position > FIRST_POSITION
            and before is not None
            and len(before.numbers) == 3 * count
            and self._decodes.again(before, taken)
        ):
            return before
        if self._spec.first:
            given = Given((), [taken[at * size : (at + 1) * size] for at in range(count)])
        else:
            given = Given(struct.unpack(f"{count}i", taken))
        places = [(sequence, position) for sequence in self._sequences[:count]]
        if not self._last:
            return self._decodes.hidden(places, self._layers, self._cache, given)
        return self._decodes.tokens(places, self._layers, self._cache, given)


class BarePipeline:
    """Processes in a ring with this one, which sends the tokens back in as they come out."""

    def __init__(
        self, model: Path, stages: int, rows: int, tokens: int, threads: int, dtype: str, log: Path
    ) -> None:
        layers = ModelConfig.from_folder(model).num_layers
        cuts = [layers * n // stages for n in range(stages + 1)]
        ways = [f"tcp://127.0.0.1:{port}" for port in free_ports(stages + 1)]
        self._specs = [
            StageSpec(str(model), a, b, rows, tokens, threads, dtype, *ways[at : at + 2])
            for at, (a, b) in enumerate(pairwise(cuts))
        ]
        self._threads, self._log = threads, log
        self._turn: asyncio.Future[Any] | None = None
        self.children: list[asyncio.subprocess.Process] = []
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._back = context.socket(zmq.PULL)
        self._in = context.socket(zmq.PUSH)
        for socket in (self._back, self._in):
            socket.linger = 0
        self._back.rcvtimeo = 1000
        self._back.bind(ways[-1])
        self._in.connect(ways[0])

    async def __aenter__(self) -> BarePipeline:
        try:
            with self._log.open("ab") as log:
                for at, spec in enumerate(self._specs):
                    path = self._log.with_suffix(f".{at}.json")
                    path.write_bytes(msgspec.json.encode(spec))
                    self.children.append(
                        await asyncio.create_subprocess_exec(
                            *(sys.executable, "-m", "bench.pipeline_bare", str(path)),
                            stderr=log,
                            env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
                        )
                    )
            await self.rate(1, 0.0)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for child in self.children:
            if child.returncode is None:
                child.kill()
            await child.wait()
        if self._turn is not None:
            # Sockets are one thread's: a turn that was cancelled still waits for its message.
            await asyncio.gather(self._turn, return_exceptions=True)
        for socket in (self._back, self._in):
            socket.close()

    async def rate(self, streams: int, seconds: float) -> float:
        """Tokens/s of so many rows, in one step more than take so long."""
        return await self._there(partial(self._rate, streams, seconds))

    async def hop_us_per_token(self, streams: int, seconds: float) -> float:
        """Processor time that a token of so many rows takes in each process beside its compiled
        step, in the mean, in so many seconds."""
        await self._there(self._told)
        await self.rate(streams, seconds)
        hops = await self._there(self._told)
        return statistics.fmean(stage.outside_s / stage.tokens for stage in hops) * 1e6

    async def _there(self, job: Callable[[], T]) -> T:
        turn = self._turn = asyncio.ensure_future(asyncio.to_thread(job))
        return await asyncio.shield(turn)

    def _rate(self, streams: int, seconds: float) -> float:
        ids = struct.pack(f"{streams}i", *range(5, 5 + streams))
        steps, started_s = 0, time.perf_counter()
        while True:
            self._in.send(ids)
            (ids,) = self._received()
            steps += 1
            taken_s = time.perf_counter() - started_s
            if taken_s >= seconds:
                return steps * streams / taken_s

    def _told(self) -> list[Hops]:
        self._in.send_multipart([b"", b""])
        return [msgspec.json.decode(part, type=Hops) for part in self._received()[2:]]

    def _received(self) -> list[bytes]:
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            try:
                return self._back.recv_multipart()
            except zmq.Again:
                if any(child.returncode is not None for child in self.children):
                    break
        raise LocalError(f"a stage ended or hangs: {self._log.read_text()[-1000:]}")


def main() -> None:
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=StageSpec)
    before_torch()
    tune_process()
    try:
        stage = Stage(spec)
    except LocalError as e:
        raise SystemExit(e.message) from None
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    take, give = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    take.bind(spec.take)
    give.connect(spec.give)
    while take.poll(int(ALONE_S * 1000)):
        taken = take.recv(copy=False)
        if not taken.more:
            give.send(stage.step(taken.buffer), copy=False)
            continue
        asked = [b"", *take.recv_multipart(), msgspec.json.encode(stage.hops())]
        give.send_multipart(asked)


if __name__ == "__main__":
    main()
