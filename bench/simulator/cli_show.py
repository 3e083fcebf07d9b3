"""What the simulate commands print beside a report: progress, the run, published cases."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from bench.simulator.native import Progress, SimResult
from bench.simulator.stats import Objectives

EVERY_S = 0.5


class ProgressLine:
    """One line on a terminal, rewritten as the run goes on; nothing elsewhere, or when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._started_s = time.monotonic()
        self._last_s = 0.0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if not self._shown or now_s - self._last_s < EVERY_S:
            return
        self._last_s = now_s
        speed = progress.simulated_s / max(1e-9, now_s - self._started_s)
        print(
            f"\r\x1b[K{progress.simulated_s:.0f} of {progress.end_s:.0f} s ({speed:.0f} x real "
            f"time): {progress.tokens} tokens, {progress.running} running, "
            f"{progress.waiting} waiting",
            end="",
            file=sys.stderr,
            flush=True,
        )


def describe(result: SimResult) -> str:
    """The run itself in two lines: its size, its speed, its hash."""
    speed = result.simulated_s / max(1e-9, result.cpu_s)
    return (
        f"simulated {result.simulated_s:.0f} s in {result.cpu_s:.1f} CPU s ({speed:.0f} x): "
        f"{result.events} events, {result.steps} steps, {result.rows} rows\n"
        f"event hash {result.event_hash}"
    )


def objectives_of(ttft_s: float | None, tpot_s: float | None) -> Objectives | None:
    """None where no objective is given. ConfigError."""
    if ttft_s is None and tpot_s is None:
        return None
    return Objectives(ttft_s=ttft_s, tpot_s=tpot_s)
