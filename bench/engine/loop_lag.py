"""How long an event loop is held up while the engine runs batches that a step loop on it begins.

`python -m bench.engine.loop_lag --out FILE`. A task sleeps for a millisecond at a time and notes
how much later it woke. On a machine with other work that is mostly waiting for a processor, which
looks the same: so beside that stands, by the kernel's books, what is left without the time for
which the loop's thread was ready and another had its processor, for how long all threads were,
and for how long the machine's host had taken the processors away.
Loop and engine have slices of a processor as in a node. Last stands a thread that hashes instead of
the engine, without the interpreter: what is late beside it is the machine's doing.

Not ahead of other programs by `chrt`: of each second in which such a process would leave them
nothing, Linux gives them 50 ms (sched_rt_runtime_us), in which loop or engine stand still.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import psutil
import typer
import uvloop

from helix_mq.time_slices import answer_soon, compute_long

_NAP_S = 0.001
_HASH_S = 3.0
_HASHED_BYTES = 16 << 20
_THREADS = Path("/proc/self/task")


@dataclass(slots=True)
class Lags:
    """Of each wake, in seconds: how late it was, and what held the loop itself up: the same without
    the time for which its thread was ready and another had its processor."""

    late_s: list[float] = field(default_factory=list)
    held_s: list[float] = field(default_factory=list)


async def lags_of(work: Callable[[], Awaitable[object]]) -> Lags:
    """How late wakes are until `work` on the same loop has ended."""
    found = Lags()
    # From wake to wake, so that what holds the loop up between naps counts, too.
    woke_s, waited_s = perf_counter(), _ready_s()
    running = asyncio.ensure_future(work())
    while not (found.late_s and running.done()):
        await asyncio.sleep(_NAP_S)
        now_s, waiting_s = perf_counter(), _ready_s()
        late_s = max(0.0, now_s - woke_s - _NAP_S)
        found.late_s.append(late_s)
        found.held_s.append(max(0.0, late_s - (waiting_s - waited_s)))
        woke_s, waited_s = now_s, waiting_s
    await running
    return found


async def in_a_thread(work: Callable[[], object]) -> None:
    """Has it done by one that computes."""
    with ThreadPoolExecutor(1, initializer=compute_long) as executor:
        await asyncio.get_running_loop().run_in_executor(executor, work)


def hashing(seconds: float) -> None:
    """Computes for so long, nearly all of it without the interpreter."""
    data, until_s = bytes(_HASHED_BYTES), perf_counter() + seconds
    while perf_counter() < until_s:
        hashlib.sha256(data)


def measured(work: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    """What a result file says of a loop beside `work`."""
    waited_s, began_s, stolen_s = _without_processor_s(), perf_counter(), _stolen_s()
    lags = uvloop.run(lags_of(work))
    return {
        "wakes": len(lags.late_s),
        "lag_ms": quantiles_ms(lags.late_s),
        "held_ms": quantiles_ms(lags.held_s),
        "without_processor_s": _without_processor_s() - waited_s,
        "stolen_s": _stolen_s() - stolen_s,
        "seconds": perf_counter() - began_s,
    }


def quantiles_ms(lags: list[float]) -> dict[str, float]:
    """p50, p99, p999 and the longest, in milliseconds; `lags` has at least one."""
    ordered = sorted(lags)
    found = {f"p{name}": ordered[int(len(ordered) * q)] for name, q in _QUANTILES.items()}
    found["max"] = ordered[-1]
    return {name: 1e3 * value for name, value in found.items()}


_QUANTILES = {"50": 0.5, "99": 0.99, "999": 0.999}


def _ready_s(thread: Path | None = None) -> float:
    """Seconds for which a thread of this process, else the calling one, was ready to run and did
    not, so far; 0 where the system does not say."""
    try:
        thread = thread or _THREADS / str(threading.get_native_id())
        return int((thread / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _without_processor_s() -> float:
    """The same of all threads of this process."""
    return sum(map(_ready_s, _THREADS.iterdir())) if _THREADS.exists() else 0.0


def _stolen_s() -> float:
    """Seconds that the host of this machine has taken from its processors, so far; 0 where it is no
    guest. Whoever stands still for it is neither waiting nor held up by anything of ours."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def ahead_of_others() -> bool:
    """Whether this process runs before others whatever they need (`chrt -r`, `chrt -f`)."""
    real = {getattr(os, name, None) for name in ("SCHED_RR", "SCHED_FIFO")}
    return hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) in real


def main(
    batches: Annotated[str, typer.Option(help="Prompts at a time, by commas.")] = "1,8,32",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="Of the engine.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Measure the demonstration model's engine; the loop should be held for 2 ms at most."""
    from bench.engine.options import job_of
    from bench.engine.peers import with_helix
    from bench.engine.prompts import prompts_of
    from bench.engine.types import Case
    from bench.planner_common import machine_summary, write_results
    from helix_mq.clock import SystemClock
    from nodes.device import DeviceThread

    cases = [Case(int(batch), 64, 64) for batch in batches.split(",")]
    job = job_of(None, cases, "cpu", threads)
    program = with_helix.load(
        {
            "folder": str(job.folder),
            "device": "cpu",
            "threads": threads,
            "batch": job.batch,
            "context": job.context,
            "dtype": dtype,
        }
    )
    if ahead_of_others():
        typer.echo("run by chrt, so that lags of 50 ms are the system's own", err=True)
    found = []
    answer_soon()
    with DeviceThread(SystemClock()) as device:
        for case in cases:
            prompts = prompts_of(job.folder, case)
            program.generate(prompts, 2)
            # Requests come one by one to a node: to make and to end all at once is the bench's.
            texts = with_helix.Texts(program, prompts, case.new_tokens)
            entry = measured(partial(program.generate_beside, device, texts))
            entry = {"batch": case.batch, **entry}
            texts.end()
            found.append(entry)
            typer.echo(str(entry))
    beside = measured(partial(in_a_thread, partial(hashing, _HASH_S)))
    typer.echo(f"hashing: {beside}")
    if out is not None:
        machine = machine_summary(("numpy", "torch"))
        result = {"machine": machine, "dtype": dtype, "threads": threads, "cases": found}
        write_results(out, {**result, "hashing": beside, "ahead_of_others": ahead_of_others()})


if __name__ == "__main__":
    typer.run(main)
