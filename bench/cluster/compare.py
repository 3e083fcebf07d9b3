"""Every scheduler in turn: simulated first, while nothing else runs, then live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import typer

from bench.cluster.result import Pair
from bench.cluster.run import Trial, overhead_of, run_live, run_simulated
from bench.cluster.subject import Subject

INTERRUPTED = 130


async def compare(
    subject: Subject,
    schedulers: Sequence[str],
    trial: Trial,
    folder: Path,
    stop: asyncio.Event,
    say: Callable[[str], None],
    keep: Callable[[Sequence[Pair]], None] = lambda _pairs: None,
) -> list[Pair]:
    """One Pair per scheduler; `keep` is told of all so far after each. typer.Exit when
    `stop` comes first; nothing is left running then."""
    pairs: list[Pair] = []
    stopping = asyncio.create_task(stop.wait())
    try:
        for scheduler in schedulers:
            simulated = await asyncio.to_thread(run_simulated, subject, scheduler, trial)
            running = asyncio.create_task(run_live(subject, scheduler, trial, folder / scheduler))
            try:
                await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not running.done():
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
            if running.cancelled():
                raise typer.Exit(INTERRUPTED)
            live = running.result()
            overhead_s = overhead_of(live.paces)
            with_overhead = replace(trial, overhead_s=trial.overhead_s + overhead_s)
            explained = await asyncio.to_thread(run_simulated, subject, scheduler, with_overhead)
            pairs.append(Pair(scheduler, live, simulated, explained, overhead_s))
            say(_line(pairs[-1]))
            keep(pairs)
    finally:
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
    return pairs


def _line(pair: Pair) -> str:
    live, simulated = pair.live.report.decode_tokens_per_s, pair.simulated.decode_tokens_per_s
    fault = "; does not count" if pair.faults() else ""
    return (
        f"{pair.scheduler}: {live:.1f} decode tokens/s live, {simulated:.1f} simulated "
        f"({pair.difference:+.1%}){fault}"
    )
