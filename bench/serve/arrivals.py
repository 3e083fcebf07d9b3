"""When requests are due, and how many tokens each has. Pure; the same seed gives the same load.

Every load process draws the whole load and takes its own requests out of it, so that how many
processes there are changes nothing of what is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from bench.serve.types import Arrivals, Closed, Job, Own, Ramp, Rate
from bench.traces.draws import Poisson, stream
from bench.traces.types import Lengths
from bench.traces.workload import RequestSource
from helix_mq.errors import ConfigError

MAX_RATE = 1e5
MAX_SECONDS = 7 * 86_400.0
WARMUP_SEED = "warm-up"


@dataclass(frozen=True, slots=True)
class Due:
    """The request of this number. `at_s` after the start; None: when one before it has ended."""

    number: int
    at_s: float | None
    lengths: Lengths


def parse_ramp(text: str) -> Ramp:
    """`from:to:seconds`, rates in requests per second. ConfigError naming what is wrong."""
    parts = text.split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(math.isfinite(n) for n in numbers):
        raise ConfigError(
            f"ramp={text!r} is not FROM:TO:SECONDS, three numbers, e.g. 1:20:60", param="ramp"
        )
    low, high, seconds = numbers
    if not (0 <= low <= MAX_RATE and 0 < high <= MAX_RATE):
        raise ConfigError(
            f"ramp={text}: rates must lie between 0 and {MAX_RATE:g} requests/s, the last one "
            "above 0",
            param="ramp",
        )
    if not 0 < seconds <= MAX_SECONDS:
        raise ConfigError(
            f"ramp={text}: seconds must be more than 0, at most {MAX_SECONDS:g}", param="ramp"
        )
    return Ramp(low, high, seconds)


def ramp_times_s(ramp: Ramp, seed: int) -> Iterator[float]:
    """Endless. The n-th is where the integrated rate reaches the n-th sum of unit exponentials,
    which makes it a Poisson process of that changing rate."""
    rng = stream(seed, "arrivals")
    low, slope = ramp.from_per_s, (ramp.to_per_s - ramp.from_per_s) / ramp.seconds
    by_the_end = (ramp.from_per_s + ramp.to_per_s) / 2 * ramp.seconds
    reached = 0.0
    while True:
        reached += rng.expovariate(1.0)
        if reached >= by_the_end:
            yield ramp.seconds + (reached - by_the_end) / ramp.to_per_s
        else:
            # The root of slope/2 t^2 + low t = reached, in the form that is exact for slope 0 too.
            yield 2 * reached / (low + math.sqrt(low * low + 2 * slope * reached))


def whole_load(job: Job, source: RequestSource) -> Iterator[Due]:
    """All requests of a job, in order; ends where the job says, or the workload does."""
    for number, (at_s, lengths) in enumerate(_unlimited(job.arrivals, source, job.seed)):
        if job.requests is not None and number >= job.requests:
            return
        if at_s is not None and job.seconds is not None and at_s >= job.seconds:
            return
        yield Due(number, at_s, lengths)


def own_part(job: Job, source: RequestSource) -> Iterator[Due]:
    """What this process sends."""
    return islice(whole_load(job, source), job.part, None, job.parts)


def own_places(at_once: int, part: int, parts: int) -> int:
    """Of `at_once` requests under way, how many are this process's."""
    return at_once // parts + (part < at_once % parts)


def _unlimited(
    arrivals: Arrivals, source: RequestSource, seed: int
) -> Iterator[tuple[float | None, Lengths]]:
    match arrivals:
        case Closed():
            return ((None, lengths) for lengths in source.lengths())
        case Rate(per_s):
            process = source.spec.arrivals or Poisson()
            times = process.times_s(per_s, stream(seed, "arrivals"))
            return zip(times, source.lengths(), strict=False)
        case Ramp():
            return zip(ramp_times_s(arrivals, seed), source.lengths(), strict=False)
        case Own():
            return ((arrival.at_s, arrival.lengths) for arrival in source.arrivals())
