"""A client of the check as a process: run to its end, with the processor time that it takes.

Which processor time is the load's and which the import of its libraries is told by samples: both
are asked for between two moments.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from helix_mq.errors import LocalError

EVERY_S = 0.1


@dataclass(slots=True)
class Spent:
    """Samples of processor seconds, taken at seconds of the machine's monotonic clock."""

    at_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def add(self, at_s: float, cpu_s: float) -> None:
        self.at_s.append(at_s)
        # A process that ended in the middle of a sample is not there: time does not run back.
        self.cpu_s.append(max(cpu_s, self.cpu_s[-1] if self.cpu_s else 0.0))

    def until(self, at_s: float) -> float:
        """Straight lines between samples, level before and after them."""
        if not self.at_s:
            return 0.0
        right = bisect_left(self.at_s, at_s)
        if right == 0:
            return self.cpu_s[0]
        if right == len(self.at_s):
            return self.cpu_s[-1]
        a, b = self.at_s[right - 1], self.at_s[right]
        share = (at_s - a) / (b - a)
        return self.cpu_s[right - 1] + share * (self.cpu_s[right] - self.cpu_s[right - 1])

    def between(self, span_s: tuple[float, float]) -> float:
        return self.until(span_s[1]) - self.until(span_s[0])


@dataclass(frozen=True, slots=True)
class Watched:
    client: Spent
    server: Spent


async def run_client(
    program: Sequence[str], arguments: Sequence[str], folder: Path, server: Sequence[int] = ()
) -> Watched:
    """Until it has ended; `server`: other processes whose time is sampled beside it. When this is
    cancelled it is ended with all that it started. Raises LocalError if it fails."""
    watched = Watched(Spent(), Spent())
    process = await asyncio.create_subprocess_exec(
        *program,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    sampling = asyncio.create_task(_sample(process.pid, server, watched))
    try:
        said, _ = await process.communicate()
    finally:
        sampling.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if process.returncode:
        raise LocalError(f"{shlex.join(arguments)}: {said.decode('utf-8', 'replace')[-2000:]}")
    return watched


async def _sample(client: int, server: Sequence[int], watched: Watched) -> None:
    while True:
        at_s = time.monotonic()
        watched.client.add(at_s, _cpu_s([client]))
        watched.server.add(at_s, _cpu_s(server))
        await asyncio.sleep(EVERY_S)


def _cpu_s(pids: Sequence[int]) -> float:
    """Of these processes and all that they started and that is there or was waited for."""
    total = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            for process in (root, *root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    total += times.user + times.system
                    total += times.children_user + times.children_system
    return total
