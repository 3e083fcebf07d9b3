"""Two result files side by side, figure by figure; any with the names of `vllm bench serve`.

Only read, never judged: whether a difference matters depends on how much runs differ by themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.result_files import read_object
from helix_mq.errors import ConfigError

SAME = 0.01
"""Less than this is called the same."""

_RATES = (
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
)
_COUNTS = ("duration", "completed", "failed", "total_input_tokens", "total_output_tokens")
_STATISTICS = ("mean", "median", "p50", "p90", "p99")
_LATENCIES = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True, slots=True)
class Row:
    """`ratio` is B over A; None where A is 0. `words`: what that means."""

    figure: str
    a: float
    b: float
    difference: float
    ratio: float | None
    words: str


def compare(
    a: Annotated[Path, typer.Argument(help="A result file.")],
    b: Annotated[Path, typer.Argument(help="Another; ratios are of this one over the first.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Set two results of `bench serve` side by side: difference and ratio of each figure."""
    # Every `helix-mq` command reads this file.
    from bench.simulator.stats_text import aligned

    rows = compare_results(read_result(a), read_result(b))
    if as_json:
        typer.echo(json.dumps({"a": str(a), "b": str(b), "figures": [asdict(r) for r in rows]}))
        return
    typer.echo(f"A {a}\nB {b}\n")
    header = ("figure", "A", "B", "B - A", "B / A", "B is")
    table = [header, *(_cells(row) for row in rows)]
    typer.echo("\n".join(aligned(table)))


def read_result(path: Path) -> Mapping[str, object]:
    """ConfigError for what is no result file."""
    found = read_object(path)
    if not any(name in found for name in _RATES):
        raise ConfigError(f"{path}: holds none of {', '.join(_RATES)}: no result of bench serve")
    return found


def compare_results(a: Mapping[str, object], b: Mapping[str, object]) -> list[Row]:
    """A row for each figure that both have."""
    names = [*_COUNTS, *_RATES]
    names += [f"{statistic}_{name}_ms" for name in _LATENCIES for statistic in _STATISTICS]
    rows = []
    for name in names:
        one, other = _number(a.get(name)), _number(b.get(name))
        if one is not None and other is not None:
            ratio = other / one if one else None
            rows.append(Row(name, one, other, other - one, ratio, _words(name, one, other)))
    return rows


def _words(name: str, a: float, b: float) -> str:
    if a == b:
        return "the same"
    if not a:
        return "new"
    change = b / a - 1
    if abs(change) < SAME:
        return "the same within 1%"
    more, less = ("higher", "lower") if name not in _COUNTS else ("more", "less")
    if name.endswith("_ms"):
        more, less = "slower", "faster"
    if b > 2 * a:
        return f"{b / a:.3g} times as {'slow' if name.endswith('_ms') else 'much'}"
    return f"{abs(change):.1%} {more if change > 0 else less}"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = f"{row.ratio:.3f}" if row.ratio is not None else "-"
    return (
        row.figure,
        _short(row.a),
        _short(row.b),
        f"{'+' if row.difference > 0 else ''}{_short(row.difference)}",
        ratio,
        row.words,
    )


def _short(value: float) -> str:
    if value == int(value) and abs(value) < 1e12:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 1000 else f"{value:.4g}"
