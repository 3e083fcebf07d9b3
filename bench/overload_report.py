"""What one phase of the overload bench says, from its outcomes and samples. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from bench.chaos.processes import Holds
from bench.overload_types import BROKEN, HUNG, LATE, REFUSED, SERVED, Job, LoadResult, Outcome

BACKGROUND = 1
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Objectives:
    """What makes an interactive request's tokens count as goodput: its first token and its mean
    time per token after it. A background request need only end well, within its deadline."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Spread:
    count: int
    p50: float
    p99: float
    most: float


@dataclass(slots=True)
class Samples:
    """Of one phase, in order of time. `at_s` since the phase began."""

    at_s: list[float] = field(default_factory=list)
    holds: dict[str, list[Holds]] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    """Spent by each process in the phase."""
    queued: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    unanswered: int = 0
    """Times the router's own pages gave no answer."""


def spread(values: Sequence[float]) -> Spread | None:
    """p99 is the smallest value that 99 % do not exceed; None without values."""
    if not values:
        return None
    ordered = sorted(values)

    def rank(share: float) -> float:
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 4)

    return Spread(len(ordered), rank(0.5), rank(0.99), round(ordered[-1], 4))


def slope_per_min(at_s: Sequence[float], values: Sequence[float]) -> float:
    """Least squares, units per minute; 0 for fewer than two moments."""
    if len(at_s) < 2 or at_s[0] == at_s[-1]:
        return 0.0
    middle, mean = sum(at_s) / len(at_s), sum(values) / len(values)
    across = sum((t - middle) * (v - mean) for t, v in zip(at_s, values, strict=True))
    return 60.0 * across / sum((t - middle) ** 2 for t in at_s)


def tpot_s(outcome: Outcome) -> float | None:
    """Mean time per token after the first; None for an answer of one token or none."""
    if outcome.first_s is None or outcome.tokens < 2:
        return None
    return (outcome.ended_s - outcome.first_s) / (outcome.tokens - 1)


def is_good(outcome: Outcome, priority: int, objectives: Objectives) -> bool:
    if outcome.kind != SERVED:
        return False
    if priority == BACKGROUND:
        return True
    first_s, per_token_s = outcome.first_s, tpot_s(outcome)
    in_time = first_s is not None and first_s - outcome.due_s <= objectives.ttft_s
    return in_time and (per_token_s is None or per_token_s <= objectives.tpot_s)


def phase_report(
    job: Job, result: LoadResult, samples: Samples, objectives: Objectives
) -> dict[str, object]:
    """Times are from when a request was due, so that a late load process cannot flatter them.
    Goodput counts what ended between `from_s` and the end of arrivals: before, the cluster fills.
    """
    outcomes = result.outcomes
    from_s = min(10.0, job.seconds / 4)
    window_s = job.seconds - from_s
    inside = [o for o in outcomes if from_s <= o.ended_s < job.seconds]
    good = [o for o in inside if is_good(o, job.senders[o.sender].priority, objectives)]
    admitted = [o for o in outcomes if o.kind != REFUSED]
    served = [o for o in outcomes if o.kind == SERVED]
    interactive, background = _by_class(job, served)
    return {
        "arrivals": len(outcomes),
        "arrivals_per_s": round(len(outcomes) / job.seconds, 2),
        "from_s": from_s,
        "good_tokens_per_s": round(sum(o.tokens for o in good) / window_s, 1),
        "served_tokens_per_s": round(
            sum(o.tokens for o in inside if o.kind == SERVED) / window_s, 1
        ),
        "admitted": len(admitted),
        "admitted_that_ended_well": len(served),
        "not_well": dict(
            Counter(f"{o.kind} {o.code}" for o in admitted if o.kind in (LATE, BROKEN, HUNG))
        ),
        "ttft_s": _asdict(spread(_ttfts(interactive))),
        "ttft_background_s": _asdict(spread(_ttfts(background))),
        "tpot_s": _asdict(spread([t for t in map(tpot_s, served) if t is not None])),
        "refused": _refusals(outcomes),
        "senders": _senders(job, inside, window_s),
        "queued": {"most": max(samples.queued, default=0)},
        "running": {"most": max(samples.running, default=0)},
        "status_pages_unanswered": samples.unanswered,
        "processes": processes(samples),
        "load_process": {
            "cpu_share": round(result.cpu_s / max(result.wall_s, 1e-9), 3),
            "late_s": _asdict(spread([o.sent_s - o.due_s for o in outcomes])),
        },
    }


def processes(samples: Samples) -> dict[str, object]:
    """Memory and descriptors of each; slopes leave out the first third, in which caches fill."""
    start = len(samples.at_s) // 3
    at_s = samples.at_s[start:]
    found: dict[str, object] = {}
    for name, holds in samples.holds.items():
        rss = [h.rss_bytes / _MIB for h in holds]
        descriptors = [h.descriptors for h in holds]
        found[name] = {
            "rss_mib_first": round(rss[0], 1),
            "rss_mib_last": round(rss[-1], 1),
            "rss_mib_most": round(max(rss), 1),
            "rss_mib_per_min": round(slope_per_min(at_s, rss[start:]), 2),
            "descriptors_first": descriptors[0],
            "descriptors_last": descriptors[-1],
            "descriptors_most": max(descriptors),
            "descriptors_per_min": round(slope_per_min(at_s, descriptors[start:]), 2),
            "cpu_share": round(samples.cpu_s.get(name, 0.0) / max(samples.at_s[-1], 1e-9), 2),
        }
    return found


def _by_class(job: Job, outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Interactive ones, background ones."""
    classes: tuple[list[Outcome], list[Outcome]] = ([], [])
    for outcome in outcomes:
        classes[job.senders[outcome.sender].priority == BACKGROUND].append(outcome)
    return classes


def _ttfts(outcomes: Sequence[Outcome]) -> list[float]:
    return [o.first_s - o.due_s for o in outcomes if o.first_s is not None]


def _refusals(outcomes: Sequence[Outcome]) -> Mapping[str, object]:
    """By status and code: how many, how soon they were told, and when to come back."""
    kinds: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.kind == REFUSED:
            kinds.setdefault(f"{outcome.status} {outcome.code}", []).append(outcome)
    return {
        kind: {
            "without_retry_after": sum(o.retry_after_s is None for o in refused),
            "retry_after_s": _asdict(
                spread([o.retry_after_s for o in refused if o.retry_after_s is not None])
            ),
            "told_after_s": _asdict(spread([o.ended_s - o.due_s for o in refused])),
        }
        for kind, refused in sorted(kinds.items())
    }


def _senders(job: Job, inside: Sequence[Outcome], window_s: float) -> dict[str, object]:
    return {
        sender.name: {
            "arrivals_per_s": round(sum(o.sender == i for o in inside) / window_s, 2),
            "tokens_per_s": round(
                sum(o.tokens for o in inside if o.sender == i and o.kind == SERVED) / window_s, 1
            ),
        }
        for i, sender in enumerate(job.senders)
    }


def _asdict(found: Spread | None) -> dict[str, object] | None:
    return asdict(found) if found is not None else None
