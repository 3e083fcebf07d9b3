"""One run of the bench: starts the load processes, has them begin at one moment, gathers."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from bench.serve.tallies import BySecond, Gaps
from bench.serve.types import (
    KINDS,
    MAX_LINE_BYTES,
    SERVED,
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
)
from helix_mq.clock import SystemClock
from helix_mq.errors import ConfigError, LocalError

START_IN_S = 0.1
"""From the last process's word to the first request: all have heard of it by then."""
END_S = 10.0
RECENT = 200
_CLOCK = SystemClock()


@dataclass(slots=True)
class Standing:
    """What is known while it runs, over all processes."""

    elapsed_s: float = 0.0
    sent: int = 0
    events: int = 0
    late_most_s: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    recent_ttft_s: list[float] = field(default_factory=list)
    """Of the last RECENT that were served."""


@dataclass(slots=True)
class Measured:
    """What came of a run. `outcomes` by number."""

    outcomes: list[Outcome] = field(default_factory=list)
    gaps: Gaps = field(default_factory=Gaps)
    lag: Gaps = field(default_factory=Gaps)
    tokens_by_s: BySecond = field(default_factory=BySecond)
    cpu_shares: list[float] = field(default_factory=list)
    """Of a core, of each process."""
    left: int = 0
    stopped: bool = False
    started_unix_s: float = 0.0
    """The start, from which times of outcomes count, as other programs on this machine say it."""


class _Child:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.progress = Progress(0, 0, 0.0)
        self.spent: Spent | None = None

    async def said(self) -> Said:
        """LocalError when it died or failed."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise LocalError("a load process ended before its time; its last words are above")
        said: Said = msgspec.json.decode(line, type=Said)
        if isinstance(said, Failed):
            raise (ConfigError if said.caller else LocalError)(said.message)
        return said

    def tell(self, told: msgspec.Struct) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(msgspec.json.encode(told) + b"\n")

    async def end(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.returncode is None:
            try:
                async with asyncio.timeout(END_S):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()


class ServeRun:
    """`run` once. `show` is called often, with the same Standing each time."""

    def __init__(
        self, job: Job, processes: int, say: Callable[[str], None], show: Callable[[Standing], None]
    ) -> None:
        self._job = job
        self._processes = processes
        self._say = say
        self._show = show
        self._standing = Standing()
        self._measured = Measured()
        self._start_s = 0.0

    async def run(self, stop: asyncio.Event) -> Measured:
        """Until all has ended, or `stop`: then what has ended until then is given.

        Raises ConfigError, or LocalError when a process dies or no request of the warm-up ends
        well.
        """
        children: list[_Child] = []
        stopping: asyncio.Task[None] | None = None
        try:
            for part in range(self._processes):
                job = msgspec.structs.replace(self._job, part=part, parts=self._processes)
                children.append(await _start(job))
            stopping = asyncio.create_task(self._stop_with(stop, children))
            self._check_warmup(await asyncio.gather(*map(_ready, children)))
            self._start_s = _CLOCK.now_s() + START_IN_S
            self._measured.started_unix_s = _CLOCK.wall_s() + START_IN_S
            for child in children:
                child.tell(Go(self._start_s))
            await asyncio.gather(*(self._follow(child, children) for child in children))
        finally:
            if stopping is not None:
                stopping.cancel()
            for child in children:
                if child.spent is None and child.process.returncode is None:
                    child.process.kill()
            await asyncio.gather(*(child.end() for child in children))
        self._measured.stopped = stop.is_set()
        self._measured.outcomes.sort(key=lambda o: o.number)
        return self._measured

    async def _stop_with(self, stop: asyncio.Event, children: list[_Child]) -> None:
        await stop.wait()
        for child in children:
            child.tell(Stop())

    def _check_warmup(self, ready: list[Ready]) -> None:
        warmed, failed = sum(r.warmed for r in ready), sum(r.failed for r in ready)
        because = next((r.because for r in ready if r.because), "")
        if failed and failed == warmed:
            unknown = any(because.startswith(f"broken: {status}") for status in (400, 422))
            remedy = "; does it know `ignore_eos`? --no-exact leaves it out" if unknown else ""
            raise LocalError(
                f"none of {warmed} requests of the warm-up ended well; {because}{remedy}"
            )
        if failed:
            self._say(f"of {warmed} requests of the warm-up {failed} did not end well; {because}")

    async def _follow(self, child: _Child, children: list[_Child]) -> None:
        measured, standing = self._measured, self._standing
        while child.spent is None:
            match await child.said():
                case Progress() as progress:
                    child.progress = progress
                    standing.elapsed_s = max(0.0, _CLOCK.now_s() - self._start_s)
                    standing.sent = sum(c.progress.sent for c in children)
                    standing.events = sum(c.progress.events for c in children)
                    standing.late_most_s = max(c.progress.late_most_s for c in children)
                    self._show(standing)
                case Ended(outcomes):
                    measured.outcomes.extend(outcomes)
                    self._count(outcomes)
                case Spent() as spent:
                    child.spent = spent
                    measured.gaps.merge(spent.gaps)
                    measured.lag.merge(spent.lag)
                    measured.tokens_by_s.merge(spent.tokens_by_s)
                    measured.cpu_shares.append(spent.cpu_s / max(spent.wall_s, 1e-9))
                    measured.left += spent.left
                case Ready():
                    raise LocalError("a load process was ready twice")

    def _count(self, outcomes: tuple[Outcome, ...]) -> None:
        standing = self._standing
        standing.kinds.update(o.kind for o in outcomes if o.kind in KINDS)
        standing.recent_ttft_s.extend(
            o.first_s - o.sent_s for o in outcomes if o.kind == SERVED and o.first_s is not None
        )
        del standing.recent_ttft_s[:-RECENT]


async def _start(job: Job) -> _Child:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.serve.worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        # Ctrl-C at a terminal reaches this process alone, which then asks for what there is.
        start_new_session=True,
    )
    child = _Child(process)
    child.tell(job)
    return child


async def _ready(child: _Child) -> Ready:
    said = await child.said()
    if not isinstance(said, Ready):
        raise LocalError(f"a load process said {type(said).__name__} before it was ready")
    return said
