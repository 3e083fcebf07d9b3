"""Rounds into figures: medians, and ratios between systems of the same round. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.bus.run import Link, Round, Series, size_name

BASES = ("blocking-1", "blocking-3", "drained-1", "drained-3")
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """What the bus is held to: the ratio of `figure` between a system and a base on plain tcp."""

    words: str
    system: str
    base: str
    figure: str
    size_bytes: int
    limit: float
    at_most: bool


_HELD_TO = (
    ("round trip of 64 KiB", "trip", 64 * KIB, 2.0, True),
    ("messages/s of 1 KiB", "rate", KIB, 0.7, False),
    ("bytes/s at 1 MiB", "rate", MIB, 0.85, False),
)
_ON_TOP = (
    ("round trip of 64 KiB", "trip", 64 * KIB, 1.25, True),
    ("bytes/s at 1 MiB", "rate", MIB, 0.8, False),
)
TARGETS = tuple(
    Target(f"{words}: {system} against {base}", system, base, figure, size, limit, at_most)
    for system, base, held_to in (
        ("connection-1", "blocking-1", _HELD_TO),
        ("plane", "blocking-1", _HELD_TO),
        ("plane", "blocking-3", _HELD_TO),
        ("plane", "drained-3", _ON_TOP),
    )
    for words, figure, size, limit, at_most in held_to
)


def way_of(link: Link) -> str:
    """In words, whatever the size."""
    return str(link).rpartition(", ")[0]


def rows_of(link: Link, measured: Sequence[Series]) -> list[dict[str, object]]:
    """One row per system, ready for JSON."""
    by_name = {series.kind.name: series.rounds for series in measured}
    rows: list[dict[str, object]] = []
    for series in measured:
        rounds = series.rounds
        rate = median(r.messages_per_s for r in rounds)
        row: dict[str, object] = {
            "system": series.kind.name,
            "transport": link.transport,
            "curve": link.curve,
            "hops": link.hops,
            "way": way_of(link),
            "size_bytes": link.size_bytes,
            "trip_p50_us": _us(median(r.trip_p50_s for r in rounds)),
            "trip_p99_us": _us(median(r.trip_p99_s for r in rounds)),
            "messages_per_s": round(rate, 1),
            "bytes_per_s": round(rate * link.size_bytes),
            "cpu_us_per_message": _us(median(r.cpu_s for r in rounds)),
            "source_cpu_us": _us(median(r.source_cpu_s for r in rounds)),
            "sink_cpu_us": _us(median(r.sink_cpu_s for r in rounds)),
            "loop_held_ms": round(max(r.lag_s for r in rounds) * 1000, 3),
            "against": {
                base: {
                    "trip": _ratios(rounds, by_name[base], lambda r: r.trip_p50_s),
                    "rate": _ratios(rounds, by_name[base], lambda r: r.messages_per_s),
                    "cpu": _ratios(rounds, by_name[base], lambda r: r.cpu_s),
                }
                for base in BASES
                if base in by_name and base != series.kind.name
            },
        }
        if series.traced_bytes is not None:
            row["python_bytes"] = series.traced_bytes
        rows.append(row)
    return rows


def verdicts(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Each target that the rows speak of, with its ratio and whether it is met."""
    found: list[dict[str, object]] = []
    for target in TARGETS:
        for row in rows:
            plain = (row["transport"], row["curve"], row["hops"]) == ("tcp", False, 1)
            if not plain or (row["system"], row["size_bytes"]) != (
                target.system,
                target.size_bytes,
            ):
                continue
            against = row["against"]
            assert isinstance(against, dict)
            if target.base not in against:
                continue
            ratio = against[target.base][target.figure][0]
            met = ratio <= target.limit if target.at_most else ratio >= target.limit
            words = "at most" if target.at_most else "at least"
            found.append(
                {
                    "target": f"{target.words}, {words} {target.limit}",
                    "ratio": ratio,
                    "met": met,
                }
            )
    return found


def table(rows: Sequence[dict[str, object]]) -> str:
    """For people: a block per link."""
    lines: list[str] = []
    link = None
    for row in rows:
        size = row["size_bytes"]
        assert isinstance(size, int)
        here = (
            f"{row['transport']}{' with keys' if row['curve'] else ''}, hops {row['hops']}, "
            f"{size_name(size)}"
        )
        if here != link:
            link = here
            lines.append(
                f"\n{here}\n{'':14}{'trip p50':>11}{'p99 us':>10}{'messages/s':>13}{'MB/s':>9}"
                f"{'CPU us':>9}{'held ms':>9}  ratio of trip, rate to the first"
            )
        against = row["against"]
        rate = row["bytes_per_s"]
        assert isinstance(against, dict)
        assert isinstance(rate, int)
        first = next(iter(against.values())) if against and row["system"] not in BASES[:1] else None
        ratio = f"{first['trip'][0]:.2f}  {first['rate'][0]:.2f}" if first else ""
        lines.append(
            f"{row['system']:14}{row['trip_p50_us']:>11}{row['trip_p99_us']:>10}"
            f"{row['messages_per_s']:>13}{rate / 1e6:>9.0f}{row['cpu_us_per_message']:>9}"
            f"{row['loop_held_ms']:>9}  {ratio}"
        )
    lines.extend(
        f"{'met ' if v['met'] else 'MISSED'} {v['ratio']:.2f}  {v['target']}"
        for v in verdicts(rows)
    )
    return "\n".join(lines)


def _ratios(
    ours: Sequence[Round], base: Sequence[Round], figure: Callable[[Round], float]
) -> list[float]:
    """[median, lowest, highest] of the ratio within each round."""
    ratios = sorted(figure(a) / figure(b) for a, b in zip(ours, base, strict=True))
    return [round(v, 3) for v in (median(ratios), ratios[0], ratios[-1])]


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 2)
