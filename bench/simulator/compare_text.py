"""A comparison as one table for a terminal: a row per case, the best of each workload marked."""

from __future__ import annotations

from collections.abc import Sequence

from bench.simulator.compare import Comparison, Outcome
from bench.simulator.stats import Report
from bench.simulator.stats_text import aligned, seconds

HEADER = (
    "case",
    "decode/s",
    "of best",
    "total/s",
    "TTFT p50",
    "p95",
    "TPOT p50",
    "p95",
    "ITL p99",
    "good",
    "busy",
    "convoy",
    "KV",
    "failed",
)


def describe(comparison: Comparison) -> str:
    """Tokens/s, latencies, goodput share, mean busy share of nodes, convoy share, peak KV.

    `of best` is against the highest decode rate on the same workload, which has a star. Cases that
    failed say why.
    """
    every = [outcome.case for outcome in comparison.outcomes]
    rows: list[Sequence[str]] = [HEADER]
    failed = []
    for outcome in comparison.outcomes:
        label = outcome.case.label(every)
        if outcome.report is None:
            failed.append(f"{label}: {outcome.error}")
            continue
        best = best_decode(comparison, outcome.case.workload)
        rows.append((label, *_cells(outcome.report, best)))
    lines = aligned(rows) if len(rows) > 1 else []
    if failed:
        lines += ["", "failed:", *(f"  {line}" for line in failed)]
    return "\n".join(lines)


def best_decode(comparison: Comparison, workload: str) -> float:
    """The highest decode tokens/s on a workload; 0 if all failed."""
    return max((_decode(o) for o in comparison.outcomes if o.case.workload == workload), default=0)


def busy(report: Report) -> float:
    """Mean share of time that nodes compute."""
    return sum(sorted(n.utilisation for n in report.nodes)) / max(1, len(report.nodes))


def _decode(outcome: Outcome) -> float:
    return 0.0 if outcome.report is None else outcome.report.decode_tokens_per_s


def _cells(report: Report, best: float) -> list[str]:
    rate = report.decode_tokens_per_s
    star = "*" if rate == best else ""
    latencies = [
        seconds(value) if spread.count else "-"
        for spread, value in (
            (report.ttft, report.ttft.p50),
            (report.ttft, report.ttft.p95),
            (report.tpot, report.tpot.p50),
            (report.tpot, report.tpot.p95),
            (report.itl, report.itl.p99),
        )
    ]
    return [
        f"{rate:.1f}",
        f"{star}{rate / best:.0%}" if best > 0 else "-",
        f"{report.total_tokens_per_s:.1f}",
        *latencies,
        "-" if report.goodput is None else f"{report.goodput.share:.0%}",
        f"{busy(report):.0%}",
        f"{report.batches.convoy_share:.0%}",
        f"{report.kv_peak:.0%}",
        str(report.failed),
    ]
