"""A run on the terminal: a line that lives while it runs, tables at its end. No figures here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bench.serve.report import ServeReport
from bench.serve.run import Standing
from bench.serve.types import BROKEN, LATE, REFUSED, SERVED, WRONG
from bench.simulator.stats_spread import Spread
from bench.simulator.stats_text import aligned, seconds

EVERY_S = 0.25
PLAIN_EVERY_S = 10.0
"""Where nobody watches: a log gets a line now and then."""


def line(standing: Standing, requests: int | None) -> str:
    """What is known now, on one line."""
    kinds, elapsed_s = standing.kinds, max(standing.elapsed_s, 1e-9)
    ended = sum(kinds.values())
    parts = [
        f"{standing.elapsed_s:.0f} s",
        f"{kinds[SERVED]}{f' of {requests}' if requests is not None else ''} served",
        f"{standing.sent - ended} under way",
    ]
    parts += [f"{kinds[kind]} {kind}" for kind in (REFUSED, LATE, BROKEN, WRONG) if kinds[kind]]
    parts.append(f"{standing.events / elapsed_s:.0f} events/s")
    recent = sorted(standing.recent_ttft_s)
    if recent:
        parts.append(f"TTFT {seconds(recent[len(recent) // 2])}")
    parts.append(f"≤ {seconds(standing.late_most_s)} behind")
    return " · ".join(parts)


@contextmanager
def progress(requests: int | None) -> Iterator[Callable[[Standing], None]]:
    """Gives what to call with each Standing; on stderr, which stays out of the result."""
    console = Console(stderr=True)
    if not console.is_terminal:
        last_s = time.monotonic()

        def plainly(standing: Standing) -> None:
            nonlocal last_s
            if time.monotonic() - last_s >= PLAIN_EVERY_S:
                last_s = time.monotonic()
                print(line(standing, requests), file=sys.stderr, flush=True)

        yield plainly
        return
    with Live(console=console, refresh_per_second=1 / EVERY_S, transient=True) as live:
        yield lambda standing: live.update(Text(line(standing, requests)))


def describe(report: ServeReport) -> str:
    """Totals, latencies, what went wrong, and how the load itself fared."""
    parts = [_totals(report), _latencies(report), _reasons(report), _load(report)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _totals(report: ServeReport) -> list[str]:
    totals, figures = report.totals, report.as_dict()

    def rate(name: str) -> float:
        value = figures[name]
        return value if isinstance(value, float) else 0.0

    kinds = ", ".join(f"{n} {kind}" for kind, n in report.kinds.items() if n)
    rows = [
        ("requests", f"{kinds or 'none'} in {totals.duration_s:.1f} s"),
        (
            "throughput",
            f"{rate('request_throughput'):.3g} requests/s, {rate('output_throughput'):.1f} output "
            f"tokens/s, {rate('total_token_throughput'):.1f} tokens/s with prompts",
        ),
        (
            "tokens",
            f"{totals.prompt_tokens} of prompts, {totals.tokens} of output, by the server's count",
        ),
        ("under way", f"at most {totals.running_most} at once"),
    ]
    if report.objectives is not None:
        ended = max(1, totals.completed + totals.failed)
        rows.append(
            (
                "goodput",
                f"{rate('request_goodput'):.3g} requests/s, {totals.good / ended:.1%} of all that "
                "ended",
            )
        )
    if report.stopped:
        rows.append(("stopped", f"early; {report.left} under way were left out"))
    return aligned_left(rows)


def _latencies(report: ServeReport) -> list[str]:
    rows: list[Sequence[str]] = [("latency", "count", "mean", "p50", "p90", "p99", "max")]
    named: tuple[tuple[str, Spread], ...] = (
        ("TTFT", report.latencies.ttft),
        ("TPOT", report.latencies.tpot),
        ("ITL", report.latencies.itl),
        ("end to end", report.latencies.e2el),
    )
    for name, s in named:
        values = [seconds(v) if s.count else "-" for v in (s.mean, s.p50, s.p90, s.p99, s.max)]
        rows.append((name, str(s.count), *values))
    return aligned(rows)


def _reasons(report: ServeReport) -> list[str]:
    return [f"{number} {reason}" for reason, number in report.reasons.items()]


def _load(report: ServeReport) -> list[str]:
    late, shares = report.latencies.late, report.cpu_shares
    text = (
        f"{len(shares)} process{'es' if len(shares) != 1 else ''}, at most "
        f"{max(shares, default=0.0):.0%} of a core; sent {seconds(late.p50)} late at p50, "
        f"{seconds(late.p99)} at p99; event loop {seconds(report.lag.p99)} late at p99"
    )
    return [*aligned_left([("load", text)]), *(f"warning: {w}" for w in report.warnings)]


def aligned_left(rows: list[tuple[str, str]]) -> list[str]:
    """Names and what is said of each."""
    width = max(10, *(len(name) for name, _ in rows))
    return [f"{name.ljust(width)}  {text}" for name, text in rows]
