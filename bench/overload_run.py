"""One run of the overload bench: a cluster of processes, its capacity, then phases of load."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil

from bench.chaos.cluster import ChaosCluster, Plan, slices_of
from bench.overload_report import Objectives, Samples, phase_report
from bench.overload_types import SERVED, Job, LoadResult, Sender
from helix_mq.errors import LocalError
from helix_mq.models.config import ModelConfig
from solver.objective import StepTimes

LAYOUT = {"alpha": (0.0, 1 / 2), "beta": (1 / 2, 1.0), "gamma": (0.0, 1.0)}
SENDERS = (
    Sender("loud", "key-of-loud", 0, 0.7, 120.0),
    Sender("second", "key-of-second", 0, 0.1, 120.0),
    Sender("third", "key-of-third", 0, 0.1, 120.0),
    Sender("nightly", "key-of-nightly", 1, 0.1, 120.0),
)
"""One sends most of what comes; the last one's requests are background."""
START_S = 120.0
WARM_S = 5.0
IDLE_S = 60.0
GRACE_S = 150.0
"""Beyond the longest deadline: what has not ended by then hangs."""
SAMPLE_S = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class OverloadOptions:
    """`seconds`: of each phase. `factors`: of the capacity, a phase each. `at_once`: requests under
    way while the capacity is measured. `node_memory` bounds how many run. `held`: nodes compute no
    faster than this, so that the capacity is theirs and not the machine's."""

    model: Path
    folder: Path
    seconds: float = 120.0
    factors: tuple[float, ...] = (1.0, 10.0, 1.0)
    capacity_s: float = 10.0
    at_once: int = 48
    node_memory: str = "4MiB"
    max_wait_s: float = 4.0
    max_waiting: int = 1024
    prompt_tokens: tuple[int, int] = (16, 96)
    output_tokens: tuple[int, int] = (16, 48)
    objectives: Objectives = field(default_factory=lambda: Objectives(8.0, 0.3))
    seed: int = 1
    held: StepTimes | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """`factor` of the capacity; None is closed-loop."""

    factor: float | None
    job: Job
    result: LoadResult
    samples: Samples


@dataclass(frozen=True, slots=True)
class Ran:
    slices: dict[str, str]
    total_pages: dict[str, int]
    capacity_tokens_per_s: float
    capacity_requests_per_s: float
    phases: tuple[Phase, ...]
    exit_codes: dict[str, int]

    def reports(self, objectives: Objectives) -> list[dict[str, object]]:
        return [
            {"times_capacity": p.factor, **phase_report(p.job, p.result, p.samples, objectives)}
            for p in self.phases
        ]


def overload_plan(options: OverloadOptions) -> Plan:
    digests = [hashlib.sha256(s.key.encode()).hexdigest() for s in SENDERS]
    longest = options.output_tokens[1]
    return Plan(
        model=options.model,
        slices=slices_of(ModelConfig.from_folder(options.model).num_layers, LAYOUT),
        node_memory=options.node_memory,
        settings=(
            f"[admission]\nmax_wait_s = {options.max_wait_s}\nmax_waiting = {options.max_waiting}\n"
            f"expected_output_tokens = {longest}"
        ),
        http=f"api_keys = {digests}",
        gates=False,
        log_level="warning",
        held=options.held,
    )


class OverloadRun:
    """`run` once."""

    def __init__(self, options: OverloadOptions, say: Say) -> None:
        self.options = options
        self._say = say
        self._plan = overload_plan(options)
        self._cluster = ChaosCluster(self._plan, options.folder / "cluster")

    async def run(self) -> Ran:
        options, cluster = self.options, self._cluster
        phases: list[Phase] = []
        try:
            await cluster.start()
            await cluster.whole(START_S)
            await self._phase(None, WARM_S, 0.0)
            capacity = await self._phase(None, options.capacity_s, 0.0)
            tokens_per_s, requests_per_s = capacity_of(capacity)
            self._say(f"capacity: {tokens_per_s:.0f} tokens/s, {requests_per_s:.1f} requests/s")
            for factor in options.factors:
                phase = await self._phase(factor, options.seconds, factor * requests_per_s)
                phases.append(phase)
                await cluster.idle(IDLE_S)
                self._say(_line(phase, options.objectives))
            picture = await cluster.picture()
        finally:
            codes = await cluster.stop()
        pages = dict(picture.total_pages) if picture is not None else {}
        slices = dict(self._plan.slices)
        return Ran(slices, pages, tokens_per_s, requests_per_s, tuple(phases), codes)

    async def _phase(self, factor: float | None, seconds: float, rate_per_s: float) -> Phase:
        options, url = self.options, urlsplit(self._cluster.url)
        assert url.hostname is not None
        assert url.port is not None
        job = Job(
            host=url.hostname,
            port=url.port,
            model="chaos",
            senders=SENDERS,
            seconds=seconds,
            rate_per_s=rate_per_s if factor is not None else None,
            at_once=options.at_once,
            prompt_tokens=options.prompt_tokens,
            output_tokens=options.output_tokens,
            seed=options.seed,
            grace_s=GRACE_S,
        )
        samples = Samples()
        sampling = asyncio.create_task(self._sample(samples, seconds))
        try:
            result = await make_load(job)
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
        if sampling.done() and not sampling.cancelled() and sampling.exception() is not None:
            raise LocalError(f"a process was lost under load: {sampling.exception()}")
        return Phase(factor, job, result, samples)

    async def _sample(self, samples: Samples, seconds: float) -> None:
        """Once a second while requests arrive, what each process holds and how many wait."""
        loop = asyncio.get_running_loop()
        children = self._cluster.children
        began_s = loop.time()
        cpu_s = {name: _cpu_s(child.pid) for name, child in children.items()}
        while loop.time() - began_s < seconds:
            await asyncio.sleep(SAMPLE_S)
            samples.at_s.append(loop.time() - began_s)
            for name, child in children.items():
                samples.holds.setdefault(name, []).append(child.holds())
                samples.cpu_s[name] = _cpu_s(child.pid) - cpu_s[name]
            picture = await self._cluster.picture()
            if picture is None:
                samples.unanswered += 1
            else:
                samples.queued.append(picture.queued)
                samples.running.append(picture.running)


async def make_load(job: Job) -> LoadResult:
    """Runs the job in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.overload_load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        answer, _ = await process.communicate(msgspec.json.encode(job))
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        raise LocalError(f"the load process ended with code {process.returncode}")
    return msgspec.json.decode(answer, type=LoadResult)


def capacity_of(phase: Phase) -> tuple[float, float]:
    """Output tokens and requests per second of what was served to the end of the last one."""
    served = [o for o in phase.result.outcomes if o.kind == SERVED]
    if not served:
        raise LocalError("nothing was served while the capacity was measured; see the logs")
    last_s = max(o.ended_s for o in served)
    return sum(o.tokens for o in served) / last_s, len(served) / last_s


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _line(phase: Phase, objectives: Objectives) -> str:
    r = phase_report(phase.job, phase.result, phase.samples, objectives)
    return (
        f"{phase.factor:g}x: {r['arrivals_per_s']} requests/s came; "
        f"{r['good_tokens_per_s']} good tokens/s; {r['admitted_that_ended_well']} of "
        f"{r['admitted']} admitted ended well; TTFT {r['ttft_s']}; TPOT {r['tpot_s']}; "
        f"load process {r['load_process']}"
    )
