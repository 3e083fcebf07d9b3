"""A load process: `python -m bench.serve.worker`.

A Job and what else it is told come as lines of JSON on stdin, what it says goes to stdout; see
`types`.

Apart from the bench itself, so that drawing a screen or counting results delays no request.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import uvloop

from bench.serve.arrivals import WARMUP_SEED, Due, own_part, own_places
from bench.serve.load import Load
from bench.serve.prompts import Prompts
from bench.serve.target import make_target
from bench.serve.types import (
    MAX_LINE_BYTES,
    SERVED,
    Closed,
    Ended,
    Failed,
    Go,
    Job,
    Outcome,
    Progress,
    Ready,
    Said,
    Spent,
    Stop,
    Told,
)
from bench.traces.workload import open_workload
from helix_mq.clock import SystemClock
from helix_mq.errors import CallerError, HelixError
from helix_mq.file_limit import raise_file_limit

TELL_EVERY_S = 0.25
MAX_OUTCOMES = 500
"""In one line: more would hold the event loop for over a millisecond while they are encoded."""
WARMUP_AT_ONCE = 8
_CLOCK = SystemClock()


class Worker:
    def __init__(self, job: Job, told: asyncio.StreamReader, say: Callable[[Said], None]) -> None:
        self._job = job
        self._told = told
        self._say = say
        self._ended: list[Outcome] = []
        tokenizer = Path(job.tokenizer) if job.tokenizer else None
        self._prompts = Prompts(job.seed, tokenizer)
        self._source = open_workload(job.workload, job.seed)
        self._target = make_target(job.target, job.exact, job.temperature, _CLOCK)

    async def run(self) -> None:
        await self._target.open()
        try:
            self._say(await self._warm_up())
            go = await _read(self._told)
            if isinstance(go, Go):
                await self._measure(go.at_s)
        finally:
            await self._target.close()

    async def _warm_up(self) -> Ready:
        """Some of the same requests, but with other texts; the rest of them is not counted."""
        job, outcomes = self._job, list[Outcome]()
        count = own_places(job.warmup, job.part, job.parts)
        if not count:
            return Ready(0, 0)
        prompts = Prompts(f"{job.seed}:{WARMUP_SEED}", self._prompts.tokenizer)
        load = Load(self._target, prompts, _CLOCK, job.deadline_s, job.exact, outcomes.append)
        lengths = self._source.lengths()
        due = (Due(n * job.parts + job.part, None, next(lengths)) for n in range(count))
        at_once = job.arrivals.at_once if isinstance(job.arrivals, Closed) else WARMUP_AT_ONCE
        await load.run(due, _CLOCK.now_s(), min(at_once, count), None)
        failed = [o for o in outcomes if o.kind != SERVED]
        because = f"{failed[0].kind}: {failed[0].reason}" if failed else ""
        return Ready(len(outcomes), len(failed), because)

    async def _measure(self, start_s: float) -> None:
        job = self._job
        load = Load(
            self._target, self._prompts, _CLOCK, job.deadline_s, job.exact, self._ended.append
        )
        at_once = None
        if isinstance(job.arrivals, Closed):
            at_once = own_places(job.arrivals.at_once, job.part, job.parts)
        # What was made until now lives to the end, and a collection would go through all of it.
        gc.collect()
        gc.freeze()
        telling = asyncio.create_task(self._tell(load))
        listening = asyncio.create_task(self._listen(load))
        cpu_s = time.process_time()
        try:
            await load.run(own_part(job, self._source), start_s, at_once, job.seconds)
            cpu_s, wall_s = time.process_time() - cpu_s, load.now_s()
        finally:
            telling.cancel()
            listening.cancel()
            await asyncio.gather(telling, listening, return_exceptions=True)
        self._tell_now(load)
        self._say(
            Spent(
                load.gaps.counts(),
                tuple(load.tokens_by_s.amounts),
                load.lag.counts(),
                cpu_s,
                wall_s,
                load.left,
            )
        )

    async def _listen(self, load: Load) -> None:
        """To Stop, or the end of whoever started this."""
        with suppress(HelixError):
            await _read(self._told)
        load.stop()

    async def _tell(self, load: Load) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            self._tell_now(load)

    def _tell_now(self, load: Load) -> None:
        while self._ended:
            some, self._ended[:MAX_OUTCOMES] = self._ended[:MAX_OUTCOMES], []
            self._say(Ended(tuple(some)))
        self._say(Progress(load.sent, load.events, load.late_most_s))


async def _read(told: asyncio.StreamReader) -> Told:
    line = await told.readline()
    return msgspec.json.decode(line, type=Told) if line else Stop()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    # A pipe that is full must not hold the load.
    pipe, flow = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    out = asyncio.StreamWriter(pipe, flow, None, loop)

    def say(said: Said) -> None:
        out.write(msgspec.json.encode(said) + b"\n")

    try:
        job = msgspec.json.decode(await told.readline(), type=Job)
        await Worker(job, told, say).run()
    except HelixError as e:
        say(Failed(e.message, isinstance(e, CallerError)))
    except msgspec.MsgspecError as e:
        say(Failed(f"what this load process was told is not understood: {e}", False))
    # Without room to wait in, it has drained when all is out.
    pipe.set_write_buffer_limits(0)
    with suppress(OSError):
        await out.drain()


if __name__ == "__main__":
    # A request under way is an open file.
    raise_file_limit()
    uvloop.run(_main())
