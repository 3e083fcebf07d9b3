"""Runs published cases and sets our figures beside the published and the measured ones.

Measured is the published simulator run again in full, so it is what we compare with; published
figures are rounded. Writes one JSON with errors, date, hardware, versions and the command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from bench.planner_common import machine_summary
from bench.simulator.reference.cases import CASES, MEASURED_NAMES
from bench.simulator.reference.reading import Table, read_table
from bench.simulator.reference.run import CaseResult, run_case

THROUGHPUT_TARGET = 0.02
MEDIAN_TARGET = 0.05

REFERENCE_CPU_S = {"ex_offline_maxflow": 390.0}
"""CPU seconds of the published simulator on one core, CPython 3.11, from the data's README."""

CAVEATS = (
    "Inferred from the measured figures, hence not independent of them: the number in flight of "
    "offline swarm, random, shortest-queue and separate cases (Little's law); the 0.1 s before a "
    "refill; arrived tokens charged once, when the first layer next runs, also for requests that "
    "are then skipped; one arrival alone starting an idle node; random ties in shortest queue "
    "(chosen among four readings).",
    "Swarm, random and shortest queue are one seed of ours against one of theirs.",
    "The case that lies outside (mp_petals) and the small differences of max flow on single24 and "
    "cluster42 are not explained. Max flow is not unique and other flows of the same value move "
    "the tutorial's offline case from 243 to 258 tokens/s, so other weights are a possible cause; "
    "none of the three kinds tried there gave the measured run.",
    "The published simulator's CPU seconds are from the data's README (extrapolated there from "
    "its first 200 simulated seconds) and were not measured on this machine.",
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case; errors are relative to the measured figures, parts by cluster in order."""

    name: str
    ours: CaseResult
    published_decode_tokens_per_s: float | None
    measured_decode_tokens_per_s: float
    throughput_error: float
    prompt_median_errors: tuple[float, ...]
    decode_median_errors: tuple[float, ...]
    identical: bool

    @property
    def within_target(self) -> bool:
        """Throughput of the sum within 2%, both medians of each of its clusters within 5%."""
        medians = (*self.prompt_median_errors, *self.decode_median_errors)
        return abs(self.throughput_error) <= THROUGHPUT_TARGET and all(
            abs(error) <= MEDIAN_TARGET for error in medians
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "case": self.name,
            "decode_tokens_per_s": {
                "ours": self.ours.decode_tokens_per_s,
                "measured": self.measured_decode_tokens_per_s,
                "published": self.published_decode_tokens_per_s,
                "error": self.throughput_error,
            },
            "prompt_median_errors": list(self.prompt_median_errors),
            "decode_median_errors": list(self.decode_median_errors),
            "identical": self.identical,
            "within_target": self.within_target,
            "ours": self.ours.as_dict(),
        }


def compare(name: str, data: Path) -> Comparison:
    """Runs `name` and compares. ReferenceDataError if the data has no figures of it."""
    measured = read_table(data / "measured.json").table(MEASURED_NAMES.get(name, name))
    published = read_table(data / "published.json")
    figure = None
    if name in published.names() and "decode_throughput" in published.table(name).names():
        figure = published.table(name).number("decode_throughput")
    ours = run_case(name, data)
    clusters = measured.tables("clusters")
    total = measured.number("decode_tokens_per_s")
    return Comparison(
        name=name,
        ours=ours,
        published_decode_tokens_per_s=figure,
        measured_decode_tokens_per_s=total,
        throughput_error=_error(ours.decode_tokens_per_s, total),
        prompt_median_errors=tuple(
            _error(
                part.prompt_latency.percentiles_s["p50"], c.table("prompt_latency").number("p50")
            )
            for part, c in zip(ours.parts, clusters, strict=True)
        ),
        decode_median_errors=tuple(
            _error(
                part.decode_latency.percentiles_s["p50"], c.table("decode_latency").number("p50")
            )
            for part, c in zip(ours.parts, clusters, strict=True)
        ),
        identical=all(_identical(ours, index, c) for index, c in enumerate(clusters)),
    )


def compare_all(
    data: Path,
    *,
    names: Sequence[str] = tuple(CASES),
    processes: int = 2,
    progress: Callable[[Comparison], None] | None = None,
) -> list[Comparison]:
    """Compares `names` in parallel processes; the result is in the order of `names`."""
    done: dict[str, Comparison] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(compare, name, data) for name in names]
        for future in as_completed(futures):
            comparison = future.result()
            done[comparison.name] = comparison
            if progress is not None:
                progress(comparison)
    return [done[name] for name in names]


def report(comparisons: Sequence[Comparison], command: str) -> dict[str, object]:
    """JSON-ready: every case, how many are within the targets, speed, and where it was measured."""
    speed = {
        c.name: {
            "reference_cpu_s": REFERENCE_CPU_S[c.name],
            "cpu_s": round(c.ours.cpu_s, 3),
            "times_faster": round(REFERENCE_CPU_S[c.name] / c.ours.cpu_s, 1),
        }
        for c in comparisons
        if c.name in REFERENCE_CPU_S
    }
    return {
        "command": command,
        "machine": machine_summary(),
        "targets": {"throughput": THROUGHPUT_TARGET, "medians": MEDIAN_TARGET},
        "cases": len(comparisons),
        "within_target": sum(c.within_target for c in comparisons),
        "identical": sum(c.identical for c in comparisons),
        "outside_target": [c.name for c in comparisons if not c.within_target],
        "speed": speed,
        "caveats": list(CAVEATS),
        "results": [c.as_dict() for c in comparisons],
    }


def _error(ours: float, measured: float) -> float:
    return ours / measured - 1 if measured else 0.0


def _identical(ours: CaseResult, index: int, measured: Table) -> bool:
    """True if the same iterations ended: all counts equal, latencies to a millionth."""
    part = ours.parts[index]
    if (part.finished_prompts, part.finished_decodes, part.finished_queries) != (
        measured.whole("finished_prompt_requests"),
        measured.whole("finished_decode_requests"),
        measured.whole("finished_queries"),
    ):
        return False
    return all(
        abs(_error(ours_s, measured.table(field).number(key))) < 1e-6
        for field, latency in (
            ("prompt_latency", part.prompt_latency),
            ("decode_latency", part.decode_latency),
        )
        for key, ours_s in (*latency.percentiles_s.items(), ("max", latency.max_s))
    )
