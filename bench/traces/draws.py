"""Draws lengths and arrival times from distributions with stated parameters. Endless, seeded.

Lengths and times come from random streams of their own, so that changing the rate does not change
the requests. The same seed gives the same workload.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from bench.traces.reference import read_counts
from bench.traces.types import MAX_TOKENS
from helix_mq.errors import ConfigError

MAX_BINS = 10_000_000


def stream(seed: int, name: str) -> random.Random:
    """A random stream of its own for each `name`, the same on every machine."""
    return random.Random(f"{seed}:{name}")


def check_range(value: float, least: float, most: float, name: str) -> None:
    """ConfigError unless least <= value <= most."""
    if not least <= value <= most:
        raise ConfigError(f"{name}={value:g} is not in {least:g}..{most:g}", param="workload")


class Distribution(ABC):
    """Of a number of tokens."""

    @abstractmethod
    def draw(self, rng: random.Random) -> float: ...

    def tokens(self, rng: random.Random) -> int:
        """A draw, rounded, in 1..MAX_TOKENS."""
        return max(1, min(MAX_TOKENS, round(min(self.draw(rng), 2.0 * MAX_TOKENS))))


@dataclass(frozen=True, slots=True)
class Fixed(Distribution):
    value: float

    def __post_init__(self) -> None:
        check_range(self.value, 1, MAX_TOKENS, "fixed(tokens)")

    def draw(self, rng: random.Random) -> float:
        return self.value


@dataclass(frozen=True, slots=True)
class Uniform(Distribution):
    """Whole numbers from `least` to `most`, both included, all as likely."""

    least: float
    most: float

    def __post_init__(self) -> None:
        check_range(self.least, 1, MAX_TOKENS, "uniform(least, …)")
        check_range(self.most, self.least, MAX_TOKENS, "uniform(…, most)")

    def draw(self, rng: random.Random) -> float:
        return rng.randint(math.ceil(self.least), max(math.ceil(self.least), int(self.most)))


@dataclass(frozen=True, slots=True)
class Lognormal(Distribution):
    """Its logarithm is normal with mean `mu` and deviation `sigma`: median e^mu tokens."""

    mu: float
    sigma: float

    def __post_init__(self) -> None:
        check_range(self.mu, 0, 16, "lognormal(mu, …)")
        check_range(self.sigma, 0, 5, "lognormal(…, sigma)")

    def draw(self, rng: random.Random) -> float:
        return rng.lognormvariate(self.mu, self.sigma)


@dataclass(frozen=True, slots=True)
class Exponential(Distribution):
    mean: float

    def __post_init__(self) -> None:
        check_range(self.mean, 1, MAX_TOKENS, "exponential(mean)")

    def draw(self, rng: random.Random) -> float:
        return rng.expovariate(1 / self.mean)


class Arrivals(ABC):
    """When requests come; `rate` is their mean number per second."""

    @abstractmethod
    def times_s(self, rate: float, rng: random.Random) -> Iterator[float]:
        """Endless, ascending, seconds after the workload's start."""


@dataclass(frozen=True, slots=True)
class Poisson(Arrivals):
    """Independent of each other: exponential gaps."""

    def times_s(self, rate: float, rng: random.Random) -> Iterator[float]:
        return _added(lambda: rng.expovariate(rate))


@dataclass(frozen=True, slots=True)
class Gamma(Arrivals):
    """Bursts: gamma-distributed gaps whose deviation is `cv` times their mean; 1 is Poisson's."""

    cv: float

    def __post_init__(self) -> None:
        check_range(self.cv, 0.05, 20, "gamma(cv)")

    def times_s(self, rate: float, rng: random.Random) -> Iterator[float]:
        shape = 1 / self.cv**2
        scale = 1 / (rate * shape)
        return _added(lambda: rng.gammavariate(shape, scale))


@dataclass(frozen=True, slots=True)
class Constant(Arrivals):
    """Equal gaps."""

    def times_s(self, rate: float, rng: random.Random) -> Iterator[float]:
        number = 0
        while True:
            number += 1
            yield number / rate


@dataclass(frozen=True, slots=True)
class Bins(Arrivals):
    """Counts per bin of a real service, over and over, stretched to `rate`; uniform in a bin."""

    path: Path

    def times_s(self, rate: float, rng: random.Random) -> Iterator[float]:
        counts: list[int] = []
        for count in read_counts(self.path):
            counts.append(count)
            if len(counts) > MAX_BINS:
                raise ConfigError(f"{self.path}: more than {MAX_BINS} bins", param="workload")
        if not sum(counts):
            raise ConfigError(f"{self.path}: no arrivals in any bin", param="workload")
        bin_s = sum(counts) / (len(counts) * rate)
        return _in_bins(counts, bin_s, rng)


def _in_bins(counts: list[int], bin_s: float, rng: random.Random) -> Iterator[float]:
    for number, count in enumerate(cycle(counts)):
        yield from sorted((number + rng.random()) * bin_s for _ in range(count))


def _added(gap_s: Callable[[], float]) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s += gap_s()
        yield at_s
