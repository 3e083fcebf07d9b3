"""Measures the systems of one link in short rounds that take turns, so that what slows the machine
down for a while slows all of them down."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.bus.ring import Ring, RingKind
from bench.bus.types import Load, Measured, System

ROUNDS = 5
WARM_UP = 20
MOST_MESSAGES = 50_000
LEAST_MESSAGES = 10
COPIES = 32

ONE_HOP: tuple[tuple[System, int], ...] = (
    ("blocking", 1),
    ("blocking", 3),
    ("drained", 1),
    ("drained", 3),
    ("connection", 1),
    ("connection", 3),
    ("plane", 3),
)
MORE_HOPS: tuple[tuple[System, int], ...] = (("blocking", 3), ("plane", 3))


@dataclass(frozen=True, slots=True)
class Link:
    """`hops`: how many a stream crosses; a trip crosses one more, back to where it began."""

    transport: str
    curve: bool
    hops: int
    size_bytes: int

    def __str__(self) -> str:
        keys = "+curve" if self.curve else ""
        hops = "1 hop" if self.hops == 1 else f"{self.hops} hops"
        return f"{self.transport}{keys}, {hops}, {size_name(self.size_bytes)}"


@dataclass(frozen=True, slots=True)
class Round:
    """One system's figures of one round; times in seconds, per message."""

    trip_p50_s: float
    trip_p99_s: float
    messages_per_s: float
    cpu_s: float
    source_cpu_s: float
    sink_cpu_s: float
    lag_s: float


@dataclass(slots=True)
class Series:
    """All rounds of one system on one link."""

    kind: RingKind
    rounds: list[Round] = field(default_factory=list)
    traced_bytes: int | None = None


def measure(
    link: Link,
    seconds: float,
    say: Callable[[str], None],
    systems: Sequence[tuple[System, int]] | None = None,
    starts: int = 1,
) -> list[Series]:
    """`seconds` of each system, starts and calibration aside, in each of so many `starts`: which
    threads share a processor is settled anew in fresh processes, and stays so in their rounds."""
    chosen = systems or (ONE_HOP if link.hops == 1 else MORE_HOPS)
    found: list[Series] = []
    for start in range(starts):
        say(f"{link}, start {start + 1} of {starts}" if starts > 1 else str(link))
        for at, series in enumerate(_started(link, seconds, chosen)):
            if start == 0:
                found.append(series)
            else:
                found[at].rounds.extend(series.rounds)
    return found


def _started(link: Link, seconds: float, chosen: Sequence[tuple[System, int]]) -> list[Series]:
    """The rounds of fresh processes."""
    with contextlib.ExitStack() as stack:
        rings = []
        for system, parts in chosen:
            kind = RingKind(
                system, parts, link.transport, link.curve, link.hops + 1, link.size_bytes
            )
            rings.append((stack.enter_context(Ring(kind)), Series(kind)))
        part_s = seconds / ROUNDS / 2
        counts = [(_fitting(r, "trips", part_s), _fitting(r, "stream", part_s)) for r, _ in rings]
        for _ in range(ROUNDS):
            for (ring, series), (trips, messages) in zip(rings, counts, strict=True):
                series.rounds.append(_one_round(ring, trips, messages))
        for ring, series in rings:
            if ring.kind.system == "plane":
                shares = ring.run(Load("copies", COPIES))
                series.traced_bytes = max(share.traced_bytes for share in shares)
        return [series for _, series in rings]


def _fitting(ring: Ring, mode: str, part_s: float) -> int:
    """How many messages fill the time, by a short run that also warms up."""
    load = Load("trips" if mode == "trips" else "stream", WARM_UP)
    ring.run(load)
    taken_s = _seconds(load, ring.run(load))
    return max(LEAST_MESSAGES, min(MOST_MESSAGES, int(WARM_UP * part_s / taken_s)))


def _one_round(ring: Ring, trips: int, messages: int) -> Round:
    there = sorted(ring.run(Load("trips", trips))[0].trips_s)
    load = Load("stream", messages)
    shares = ring.run(load)
    cpu_s = [share.cpu_s / messages for share in shares]
    return Round(
        trip_p50_s=there[len(there) // 2],
        trip_p99_s=there[int(len(there) * 0.99)],
        messages_per_s=messages / _seconds(load, shares),
        cpu_s=sum(cpu_s),
        source_cpu_s=cpu_s[0],
        sink_cpu_s=cpu_s[-1],
        lag_s=max(share.lag_s for share in shares),
    )


def _seconds(load: Load, shares: Sequence[Measured]) -> float:
    """From the first message's sending to the last one's arrival."""
    end = shares[0] if load.mode == "trips" else shares[-1]
    return max(1e-6, end.end_s - shares[0].start_s)


def size_name(nbytes: int) -> str:
    """`64 KiB`."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit and nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"
