"""A report as text for a terminal: what it came to, latencies, the busiest and the idlest machines.

Fixed width, no colours, so that it reads the same in a log. No figures are computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.simulator.stats import LinkUse, NodeUse, Report
from bench.simulator.stats_spread import Spread

MAX_NODES = 12
MAX_LINKS = 6
_LATENCY_COLUMNS = ("mean", "p5", "p25", "p50", "p75", "p90", "p95", "p99", "max")


def seconds(value: float) -> str:
    """Three digits and the unit a person would use."""
    if value >= 100:
        return f"{value:.0f} s"
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 or value == 0 else f"{value * 1e6:.3g} µs"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def describe(report: Report) -> str:
    """The report's tables, blank lines between them."""
    parts = [_totals(report), _latencies(report), _machines(report.nodes), _links(report.links)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _totals(report: Report) -> list[str]:
    batches = report.batches
    rows = [
        ("measured", f"{report.duration_s:g} s after {report.warmup_s:g} s of warm-up"),
        (
            "requests",
            f"{report.finished} finished ({report.requests_per_s:.3g}/s), {report.failed} failed, "
            f"{report.arrived} arrived, {report.unfinished} open at the end",
        ),
        ("decode", f"{report.decode_tokens_per_s:.1f} tokens/s"),
        (
            "total",
            f"{report.total_tokens_per_s:.1f} tokens/s "
            f"({report.prompt_tokens_per_s:.1f} prompt, {report.output_tokens_per_s:.1f} output)",
        ),
        (
            "in flight",
            f"{report.running.mean:.1f} running (peak {report.running.peak:g}), "
            f"{report.waiting.mean:.1f} waiting (peak {report.waiting.peak:g})",
        ),
        (
            "batches",
            f"{batches.decode_batch:.1f} decodes a step, {batches.convoy_batch:.1f} around the "
            f"average token ({batches.convoy_share:.0%} of those in flight)",
        ),
        (
            "behind prompts",
            f"{batches.behind_prompts:.0%} of decodes' time in steps, "
            f"{batches.waiting_for_prompts:.0%} of all time in flight waiting for theirs to end",
        ),
        ("KV pages", f"{report.kv_mean:.0%} in use, {report.kv_peak:.0%} on the fullest node"),
    ]
    if report.direct is not None:
        ended = report.finished + report.failed
        rows.append(
            (
                "token return",
                f"{report.direct} of {ended} requests straight from the last hop to the first",
            )
        )
    if report.goodput is not None:
        good = report.goodput
        rows.append(
            (
                "goodput",
                f"{good.requests_per_s:.3g} requests/s, {good.share:.1%} of all, "
                f"{good.output_tokens_per_s:.1f} tokens/s",
            )
        )
    failures = {r: n for r, n in report.reasons.items() if r not in ("stop", "length")}
    if report.failed and failures:
        rows.append(("ended by", ", ".join(f"{r} {n}" for r, n in failures.items())))
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {text}" for name, text in rows]


def _latencies(report: Report) -> list[str]:
    rows: list[Sequence[str]] = [("latency", "count", *_LATENCY_COLUMNS)]
    named: Sequence[tuple[str, Spread]] = (
        ("TTFT", report.ttft),
        ("TPOT", report.tpot),
        ("ITL", report.itl),
        ("end to end", report.e2e),
    )
    for name, spread in named:
        values = [
            seconds(getattr(spread, column)) if spread.count else "-" for column in _LATENCY_COLUMNS
        ]
        rows.append((name, str(spread.count), *values))
    return aligned(rows)


def _machines(nodes: Sequence[NodeUse]) -> list[str]:
    if not nodes:
        return []
    header = ("node", "busy", "prefill", "steps", "tokens", "decodes", "convoy", "KV", "queue")
    rows: list[Sequence[str]] = [header]
    ordered = sorted(nodes, key=lambda n: (-n.utilisation, n.node))
    shown = ordered if len(ordered) <= MAX_NODES else ordered[: MAX_NODES // 2]
    rows += [_machine(node) for node in shown]
    if len(ordered) > MAX_NODES:
        left = len(ordered) - MAX_NODES // 2 * 2
        rows.append((f"… {left} between", *("" for _ in header[1:])))
        rows += [_machine(node) for node in ordered[-(MAX_NODES // 2) :]]
    mean = sum(sorted(node.utilisation for node in nodes)) / len(nodes)
    return [*aligned(rows), f"mean of {len(nodes)} nodes: {mean:.0%} busy"]


def _machine(node: NodeUse) -> Sequence[str]:
    return (
        node.node,
        f"{node.utilisation:.0%}",
        f"{node.prefill_share:.0%}",
        str(node.steps),
        f"{node.tokens_per_step:.1f}",
        f"{node.decode_batch:.1f}",
        f"{node.convoy_batch:.1f}",
        f"{node.kv_mean:.0%}",
        "-" if node.queue_rows is None else f"{node.queue_rows:.1f}",
    )


def _links(links: Sequence[LinkUse]) -> list[str]:
    if not links:
        return []
    rows: list[Sequence[str]] = [("busiest links", "busy", "MB/s", "frames")]
    busiest = sorted(links, key=lambda k: (-k.utilisation, k.src, k.dst))[:MAX_LINKS]
    rows += [
        (
            f"{link.src} → {link.dst}",
            f"{link.utilisation:.1%}",
            f"{link.bytes_per_s / 1e6:.3g}",
            str(link.frames),
        )
        for link in busiest
    ]
    return aligned(rows)
