"""What a comparison came to: live beside simulated, and whether the live run counts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from bench.cluster.run import Live, NodePace
from bench.simulator.stats import Report
from bench.simulator.stats_text import aligned, seconds

TOLERANCE: Final = 0.15
MOST_OVERRUN: Final = 0.02
"""Of a node's steps may compute for longer than they should last."""
MOST_LONGER: Final = 1.05
"""Times what they should, steps may last on average."""
MOST_BUSY: Final = 0.9
"""Of this machine: beyond it everything waits for a processor now and then."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One scheduler, both ways. `explained`: simulated once more, with `overhead_s` on each step:
    what the live nodes took between steps. It shows how much of the difference that is."""

    scheduler: str
    live: Live
    simulated: Report
    explained: Report
    overhead_s: float

    @property
    def difference(self) -> float:
        """Of decode throughput: live over simulated, less 1."""
        simulated = self.simulated.decode_tokens_per_s
        return self.live.report.decode_tokens_per_s / simulated - 1 if simulated else 0.0

    def faults(self) -> list[str]:
        """Why the live figures are not those of the emulated cluster; empty where they are."""
        found = [text for pace in self.live.paces for text in _pace_faults(pace)]
        if self.live.failures:
            found.append(f"requests failed: {self.live.failures}")
        return found

    def warnings(self) -> list[str]:
        if self.live.machine_busy > MOST_BUSY:
            return [f"this machine was {self.live.machine_busy:.0%} busy"]
        return []

    def row(self) -> dict[str, Any]:
        """What is looked at first, for a table."""
        sides = {
            "live": self.live.report,
            "simulated": self.simulated,
            "with_overhead": self.explained,
        }
        row: dict[str, Any] = {"scheduler": self.scheduler, "counts": not self.faults()}
        row["decode_difference"] = self.difference
        for name, found in sides.items():
            row[name] = {
                "decode_tokens_per_s": found.decode_tokens_per_s,
                "prompt_tokens_per_s": found.prompt_tokens_per_s,
                "ttft_s": found.ttft.mean,
                "tpot_s": found.tpot.mean,
                "e2e_s": found.e2e.mean,
            }
        row["overhead_s"] = self.overhead_s
        row["machine_busy"] = self.live.machine_busy
        return row

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; no timelines."""
        live = self.live
        return {
            "scheduler": self.scheduler,
            "decode_difference": self.difference,
            "faults": self.faults(),
            "warnings": self.warnings(),
            "live": live.report.as_dict(timeline=False),
            "simulated": self.simulated.as_dict(timeline=False),
            "simulated_with_overhead": self.explained.as_dict(timeline=False),
            "overhead_s": self.overhead_s,
            "emulation": {
                "nodes": [asdict(pace) for pace in live.paces],
                "shaper_late_s": live.shaper_late_s,
                "cpu_cores": live.cpu_cores,
                "machine_busy": live.machine_busy,
            },
        }


def _pace_faults(pace: NodePace) -> list[str]:
    found = []
    if pace.overran_share > MOST_OVERRUN:
        found.append(
            f"{pace.node}: {pace.overran_share:.0%} of its steps computed for longer than the "
            "emulated machine would: too little processor is free; use --slower"
        )
    if pace.longer > MOST_LONGER:
        found.append(f"{pace.node}: its steps lasted {pace.longer:.2f} times what they should")
    return found


def table(pairs: Sequence[Pair]) -> str:
    """For a terminal: throughput and latencies, then the nodes' use."""
    head = ("", "decode tok/s", "prompt tok/s", "TTFT", "p90", "TPOT", "p50", "p90", "p99", "e2e")
    rows: list[Sequence[str]] = [head]
    for pair in pairs:
        overhead = f"with {seconds(pair.overhead_s)} a step"
        sides = (
            (f"{pair.scheduler} live", pair.live.report),
            (f"{pair.scheduler} simulated", pair.simulated),
            (f"  {overhead}", pair.explained),
        )
        for name, r in sides:
            rows.append(
                (
                    name,
                    f"{r.decode_tokens_per_s:.1f}",
                    f"{r.prompt_tokens_per_s:.0f}",
                    *(seconds(v) for v in (r.ttft.mean, r.ttft.p90, r.tpot.mean, r.tpot.p50)),
                    *(seconds(v) for v in (r.tpot.p90, r.tpot.p99, r.e2e.mean)),
                )
            )
        rows.append((f"  difference {pair.difference:+.1%}", *[""] * (len(head) - 1)))
    return "\n".join([*aligned(rows), "", *_use(pairs), *_faults(pairs)])


def _use(pairs: Sequence[Pair]) -> list[str]:
    names = sorted({n.node for pair in pairs for n in pair.simulated.nodes})
    rows: list[Sequence[str]] = [("nodes computing", *names)]
    for pair in pairs:
        for name, report in (("live", pair.live.report), ("simulated", pair.simulated)):
            use = {n.node: f"{n.utilisation:.0%}" for n in report.nodes}
            rows.append((f"{pair.scheduler} {name}", *(use.get(n, "0%") for n in names)))
    return aligned(rows)


def _faults(pairs: Sequence[Pair]) -> list[str]:
    lines = [f"{p.scheduler} does not count: {text}" for p in pairs for text in p.faults()]
    lines += [f"{p.scheduler}: {text}" for p in pairs for text in p.warnings()]
    return ["", *lines] if lines else []
