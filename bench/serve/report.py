"""The figures of a run, named as in the JSON of `vllm bench serve`; ours under `helix_mq`. Pure.

Latencies are of requests that were served, from when they were sent; rates are over `duration`,
from the start to the last end. Percentiles are nearest-rank, those of ITL within 1 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from bench.serve.run import Measured
from bench.serve.types import KINDS, SERVED, Outcome
from bench.simulator.records import RequestRecord
from bench.simulator.stats import Objectives
from bench.simulator.stats_spread import Spread, of_histogram, of_values
from helix_mq.errors import ConfigError

LATE_P99_S = 0.005
CPU_SHARE = 0.7
TOKENS_PER_EVENT = 1.02
_OBJECTIVES = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s"}


@dataclass(frozen=True, slots=True)
class Latencies:
    """In seconds; `deviation_s` by name."""

    ttft: Spread
    tpot: Spread
    itl: Spread
    e2el: Spread
    ttft_from_due: Spread
    late: Spread
    deviation_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Totals:
    """`running_most`: requests under way at once. `events` with output, of served requests."""

    duration_s: float
    completed: int
    failed: int
    prompt_tokens: int
    tokens: int
    events: int
    good: int
    good_tokens: int
    running_most: int


@dataclass(frozen=True, slots=True)
class ServeReport:
    totals: Totals
    latencies: Latencies
    kinds: dict[str, int]
    reasons: dict[str, int]
    objectives: Objectives | None
    cpu_shares: tuple[float, ...]
    lag: Spread
    tokens_by_s: tuple[float, ...]
    running_by_s: tuple[int, ...]
    left: int
    stopped: bool
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        totals, duration_s = self.totals, max(self.totals.duration_s, 1e-9)
        found: dict[str, object] = {
            "duration": totals.duration_s,
            "completed": totals.completed,
            "failed": totals.failed,
            "total_input_tokens": totals.prompt_tokens,
            "total_output_tokens": totals.tokens,
            "request_throughput": totals.completed / duration_s,
            "request_goodput": totals.good / duration_s if self.objectives else None,
            "output_throughput": totals.tokens / duration_s,
            "total_token_throughput": (totals.prompt_tokens + totals.tokens) / duration_s,
            "max_output_tokens_per_s": max(self.tokens_by_s, default=0.0),
            "max_concurrent_requests": totals.running_most,
        }
        for name in ("ttft", "tpot", "itl", "e2el"):
            spread: Spread = getattr(self.latencies, name)
            found[f"mean_{name}_ms"] = spread.mean * 1e3
            found[f"median_{name}_ms"] = spread.p50 * 1e3
            found[f"std_{name}_ms"] = self.latencies.deviation_s[name] * 1e3
            for p in (50, 90, 99):
                found[f"p{p}_{name}_ms"] = getattr(spread, f"p{p}") * 1e3
        found["helix_mq"] = self._ours(duration_s)
        return found

    def _ours(self, duration_s: float) -> dict[str, object]:
        totals = self.totals
        ours: dict[str, object] = {
            "outcomes": self.kinds,
            "reasons": self.reasons,
            "ttft_from_due_ms": _ms(self.latencies.ttft_from_due),
            "tokens_per_event": totals.tokens / totals.events if totals.events else None,
            "max_ms": {
                name: getattr(self.latencies, name).max * 1e3
                for name in ("ttft", "tpot", "itl", "e2el")
            },
            "load": {
                "processes": len(self.cpu_shares),
                "cpu_share": [round(share, 4) for share in self.cpu_shares],
                "late_ms": _ms(self.latencies.late),
                "loop_lag_ms": _ms(self.lag),
            },
            "warnings": list(self.warnings),
            "stopped": self.stopped,
            "left_under_way": self.left,
            "output_tokens_by_s": [round(n, 1) for n in self.tokens_by_s],
            "running_by_s": list(self.running_by_s),
        }
        if self.objectives is not None:
            ended = max(1, totals.completed + totals.failed)
            ours["objectives"] = asdict(self.objectives)
            ours["good_share"] = totals.good / ended
            ours["good_output_throughput"] = totals.good_tokens / duration_s
        return ours


def parse_goodput(pairs: Sequence[str]) -> Objectives | None:
    """`ttft:2.0`, `tpot:100ms`, `e2el:30s`; seconds where no unit is given. ConfigError."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition(":")
        if name not in _OBJECTIVES or not text:
            raise ConfigError(
                f"goodput={pair!r} is not NAME:SECONDS with one of {', '.join(_OBJECTIVES)}, "
                "e.g. ttft:2.0 or tpot:100ms",
                param="goodput",
            )
        if _OBJECTIVES[name] in found:
            raise ConfigError(f"goodput: {name} is given twice", param="goodput")
        found[_OBJECTIVES[name]] = _seconds(pair, text)
    return Objectives(**found) if found else None


def report(measured: Measured, objectives: Objectives | None) -> ServeReport:
    outcomes = measured.outcomes
    served = [o for o in outcomes if o.kind == SERVED]
    records = [_record(o) for o in served]
    good = [r for r in records if objectives is not None and objectives.met_by(r)]
    duration_s = max((o.ended_s for o in outcomes), default=0.0)
    running, most = _running(outcomes, duration_s)
    totals = Totals(
        duration_s=duration_s,
        completed=len(served),
        failed=len(outcomes) - len(served),
        prompt_tokens=sum(o.prompt_tokens for o in served),
        tokens=sum(o.tokens for o in served),
        events=sum(o.events for o in served),
        good=len(good),
        good_tokens=sum(r.tokens for r in good),
        running_most=most,
    )
    latencies = _latencies(measured, records, outcomes)
    kinds = Counter(o.kind for o in outcomes)
    reasons = Counter(f"{o.kind}: {o.reason}" for o in outcomes if o.kind != SERVED)
    lag = of_histogram(measured.lag.histogram)
    return ServeReport(
        totals=totals,
        latencies=latencies,
        kinds={kind: kinds[kind] for kind in KINDS},
        reasons=dict(reasons.most_common()),
        objectives=objectives,
        cpu_shares=tuple(measured.cpu_shares),
        lag=lag,
        tokens_by_s=tuple(measured.tokens_by_s.amounts),
        running_by_s=running,
        left=measured.left,
        stopped=measured.stopped,
        warnings=tuple(_warnings(totals, latencies.late, lag, measured.cpu_shares)),
    )


def _record(o: Outcome) -> RequestRecord:
    return RequestRecord(
        request=str(o.number),
        arrival_s=o.sent_s,
        prompt_tokens=o.prompt_tokens,
        output_tokens=o.asked_tokens,
        first_token_s=o.first_s,
        last_token_s=o.last_s if o.last_s is not None else o.ended_s,
        end_s=o.ended_s,
        tokens=o.tokens,
        ok=True,
        reason="",
    )


def _latencies(
    measured: Measured, records: Sequence[RequestRecord], outcomes: Sequence[Outcome]
) -> Latencies:
    ttft = [t for r in records if (t := r.ttft_s) is not None]
    tpot = [t for r in records if (t := r.tpot_s) is not None]
    e2el = [r.e2e_s for r in records]
    from_due = [o.first_s - o.due_s for o in outcomes if o.kind == SERVED and o.first_s is not None]
    return Latencies(
        ttft=of_values(ttft),
        tpot=of_values(tpot),
        itl=of_histogram(measured.gaps.histogram),
        e2el=of_values(e2el),
        ttft_from_due=of_values(from_due),
        late=of_values(o.sent_s - o.due_s for o in outcomes),
        deviation_s={
            "ttft": _deviation(ttft),
            "tpot": _deviation(tpot),
            "itl": measured.gaps.deviation_s,
            "e2el": _deviation(e2el),
        },
    )


def _warnings(
    totals: Totals, late: Spread, lag: Spread, cpu_shares: Sequence[float]
) -> Iterable[str]:
    if late.p99 > LATE_P99_S:
        yield (
            f"requests were sent {late.p99 * 1e3:.1f} ms late at p99: the load itself is short of "
            "time; use more --processes, fewer requests, or another machine"
        )
    if lag.p99 > LATE_P99_S:
        yield (
            f"the load's event loop came back {lag.p99 * 1e3:.1f} ms late at p99: times of tokens "
            "are that uncertain"
        )
    busiest = max(cpu_shares, default=0.0)
    if busiest > CPU_SHARE:
        yield (
            f"a load process used {busiest:.0%} of a core: it may be what was measured; use more "
            "--processes"
        )
    if totals.events and totals.tokens > TOKENS_PER_EVENT * totals.events:
        yield (
            f"events carried {totals.tokens / totals.events:.2f} tokens on average: ITL is between "
            "events; TPOT is per token"
        )


def _running(outcomes: Sequence[Outcome], duration_s: float) -> tuple[tuple[int, ...], int]:
    """The most under way at once in each second, and of all."""
    changes = sorted([(o.sent_s, 1) for o in outcomes] + [(o.ended_s, -1) for o in outcomes])
    by_second, now = [0] * math.ceil(duration_s), 0
    second = 0
    for at_s, change in changes:
        while second < int(at_s):
            second += 1
            if second < len(by_second):
                by_second[second] = now
        now += change
        if second < len(by_second):
            by_second[second] = max(by_second[second], now)
    return tuple(by_second), max(by_second, default=0)


def _deviation(values: Sequence[float]) -> float:
    """Of all values, not of a sample of more, as vllm's."""
    if not values:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


def _ms(spread: Spread) -> dict[str, float]:
    return {
        "mean": round(spread.mean * 1e3, 4),
        "p50": round(spread.p50 * 1e3, 4),
        "p99": round(spread.p99 * 1e3, 4),
        "max": round(spread.max * 1e3, 4),
    }


def _seconds(pair: str, text: str) -> float:
    scale = 1.0
    if text.endswith("ms"):
        text, scale = text[:-2], 1e-3
    elif text.endswith("s"):
        text = text[:-1]
    try:
        value = float(text) * scale
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(
            f"goodput={pair!r}: the time must be a number above 0, in seconds or with ms or s",
            param="goodput",
        )
    return value
