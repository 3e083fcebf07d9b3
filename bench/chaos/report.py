"""What a chaos run found: a frozen value, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class RoundReport:
    """`healed_s`: from the last fault's mending until the cluster was whole again. `settled_s`:
    until every request that had been under way at the first fault had ended."""

    number: int
    what: str
    struck_s: float
    healed_s: float
    settled_s: float
    under_way: int
    rerouted: int
    reroutes: int
    longest_gap_s: float


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """`violations`: broken guarantees, in words; none of them and `complete` is a pass. A run under
    way has no `afterwards_tokens_per_s` yet, and its books are not closed. Times in seconds.
    `held`: after each round, of the longest-lived process of each name."""

    seed: int
    streams: int
    rounds: tuple[RoundReport, ...]
    seconds: float
    nodes: dict[str, str]
    catalogue: int
    finished: int
    cancelled: int
    tokens: int
    rerouted: int
    reroutes: int
    most_reroutes: int
    gaps_s: tuple[float, ...]
    forgotten_s: tuple[float, ...]
    undisturbed_tokens_per_s: float
    afterwards_tokens_per_s: float | None
    held: dict[str, dict[str, list[int]]]
    violations: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.afterwards_tokens_per_s is not None

    @property
    def passed(self) -> bool:
        return self.complete and not self.violations

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        for name in ("gaps_s", "forgotten_s"):
            found[name] = spread(getattr(self, name))
        found["faults"] = dict(sorted(self.faults().items()))
        found["complete"] = self.complete
        found["passed"] = self.passed
        return found

    def faults(self) -> Counter[str]:
        """How often each kind came."""
        return Counter(part.split(" ", 1)[0] for r in self.rounds for part in r.what.split(" and "))

    def text(self) -> str:
        gaps, gone = spread(self.gaps_s), spread(self.forgotten_s)
        lines = [
            f"{len(self.rounds)} rounds of faults in {self.seconds:.0f} s, {self.streams} streams, "
            f"seed {self.seed}: " + ", ".join(f"{k} {n}" for k, n in sorted(self.faults().items())),
            f"{self.finished} requests finished, {self.cancelled} cancelled, {self.tokens} tokens",
            f"{self.rerouted} requests moved {self.reroutes} times, one at most "
            f"{self.most_reroutes} times; their longest pause: median {gaps['median']:.2f} s, "
            f"90% {gaps['p90']:.2f} s, longest {gaps['most']:.2f} s",
            f"a node that ended was forgotten after {gone['median']:.2f} s, at most "
            f"{gone['most']:.2f} s",
            f"{self.undisturbed_tokens_per_s:.0f} tokens/s before, "
            f"{self.afterwards_tokens_per_s or 0:.0f} after",
        ]
        if self.passed:
            lines.append("every guarantee held")
        lines += [f"BROKEN: {v}" for v in self.violations]
        return "\n".join(lines)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Count, median, 90th percentile and the most; zeros for none."""
    if not values:
        return {"count": 0, "median": 0.0, "p90": 0.0, "most": 0.0}
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "median": round(median(ordered), 4),
        "p90": round(ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))], 4),
        "most": round(ordered[-1], 4),
    }
