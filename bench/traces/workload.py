"""A workload: requests for a simulation or a load test, from a trace or drawn, as streams.

`open_workload` understands a specification (see `spec`). Files are read again for each iteration,
a row at a time; nothing grows with their length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench.traces import azure, reference
from bench.traces.draws import Poisson, stream
from bench.traces.sharegpt import CountTokens, read_sharegpt
from bench.traces.spec import Spec, parse_spec
from bench.traces.types import Arrival, Lengths
from helix_mq.errors import ConfigError

MAX_DROPPED = 100_000
"""Draws in a row that may be over the limits before they are taken to exclude everything."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most tokens of a request; beyond, it is left out, or with `cut` shortened to them."""

    max_prompt: int | None = None
    max_output: int | None = None
    cut: bool = False

    def apply(self, lengths: Lengths) -> Lengths | None:
        """The request as it may be sent; None if it is left out."""
        prompt = lengths.prompt_tokens if self.max_prompt is None else self.max_prompt
        output = lengths.output_tokens if self.max_output is None else self.max_output
        if lengths.prompt_tokens <= prompt and lengths.output_tokens <= output:
            return lengths
        if not self.cut:
            return None
        return Lengths(min(lengths.prompt_tokens, prompt), min(lengths.output_tokens, output))


@dataclass(frozen=True, slots=True)
class Shape:
    """Means of a workload's requests, for planning and for saying what was run."""

    requests: int
    prompt_tokens: float
    output_tokens: float


class RequestSource:
    """What `open_workload` gives: `lengths()` for a full cluster, `arrivals()` for a clock.

    `timed`: the file says when requests come. Each call starts anew and gives the same requests.
    """

    def __init__(self, text: str, spec: Spec, seed: int, count_tokens: CountTokens | None) -> None:
        self.text = text
        self.spec = spec
        self.seed = seed
        self._limits = Limits(spec.max_prompt, spec.max_output, spec.over == "cut")
        self._path = Path(spec.path)
        self._count_tokens = count_tokens or self._estimate
        self.timed = spec.kind.startswith("azure") or (
            spec.kind == "reference" and reference.has_arrivals(self._path)
        )

    def lengths(self) -> Iterator[Lengths]:
        """Requests without times. Endless, a file from its start again; `take` ends it."""
        return islice(self._endless(), self.spec.take)

    def arrivals(self) -> Iterator[Arrival]:
        """Requests with times: the file's, stretched to `rate`; or drawn, if so asked or untimed.

        The file's end at its end, drawn ones never; `take` ends both. ConfigError if there is
        neither a time nor a rate.
        """
        spec = self.spec
        if self.timed and spec.arrivals is None:
            return islice(self._scaled(), spec.take)
        if spec.rate is None:
            raise ConfigError(
                f"workload {self.text}: needs rate=, requests per second", param="workload"
            )
        process = spec.arrivals or Poisson()
        times = process.times_s(spec.rate, stream(self.seed, "arrivals"))
        return (Arrival(at, lengths) for at, lengths in zip(times, self.lengths(), strict=False))

    def shape(self, sample: int = 20_000) -> Shape:
        """Of the first `sample` requests, or of one pass of the file if that is shorter."""
        requests, prompt, output = 0, 0, 0
        source = self._drawn() if self.spec.kind == "synthetic" else self._once()
        for lengths in islice(source, min(sample, self.spec.take or sample)):
            requests += 1
            prompt += lengths.prompt_tokens
            output += lengths.output_tokens
        if not requests:
            raise self._empty()
        return Shape(requests, prompt / requests, output / requests)

    def _estimate(self, text: str) -> int:
        return math.ceil(len(text) / self.spec.chars_per_token)

    def _file(self) -> Iterator[Lengths]:
        """One pass over an untimed file, or a timed one's lengths."""
        kind, path = self.spec.kind, self._path
        if kind == "sharegpt":
            return read_sharegpt(path, self._count_tokens, all_turns=self.spec.turns == "all")
        if self.timed:
            return (arrival.lengths for arrival in self._file_arrivals())
        return reference.read_lengths(path)

    def _file_arrivals(self) -> Iterator[Arrival]:
        read: Callable[[Path], Iterator[Arrival]] = (
            reference.read_arrivals if self.spec.kind == "reference" else azure.read_azure
        )
        return read(self._path)

    def _once(self) -> Iterator[Lengths]:
        for lengths in self._file():
            kept = self._limits.apply(lengths)
            if kept is not None:
                yield kept

    def _endless(self) -> Iterator[Lengths]:
        if self.spec.kind == "synthetic":
            yield from self._drawn()
        while True:
            some = False
            for lengths in self._once():
                some = True
                yield lengths
            if not some:
                raise self._empty()

    def _drawn(self) -> Iterator[Lengths]:
        prompt, output = self.spec.prompt, self.spec.output
        assert prompt is not None
        assert output is not None
        prompt_rng, output_rng = stream(self.seed, "prompt"), stream(self.seed, "output")
        dropped = 0
        while dropped < MAX_DROPPED:
            kept = self._limits.apply(Lengths(prompt.tokens(prompt_rng), output.tokens(output_rng)))
            dropped = 0 if kept is not None else dropped + 1
            if kept is not None:
                yield kept
        raise self._empty()

    def _kept_arrivals(self) -> Iterator[Arrival]:
        for arrival in self._file_arrivals():
            kept = self._limits.apply(arrival.lengths)
            if kept is not None:
                yield arrival if kept is arrival.lengths else Arrival(arrival.at_s, kept)

    def _scaled(self) -> Iterator[Arrival]:
        stretch = 1.0
        if self.spec.rate is not None:
            count, last_s = 0, 0.0
            for arrival in self._kept_arrivals():
                count, last_s = count + 1, arrival.at_s
            if not last_s:
                raise ConfigError(
                    f"workload {self.text}: rate= needs a trace that lasts", param="workload"
                )
            stretch = count / last_s / self.spec.rate
        some = False
        for arrival in self._kept_arrivals():
            some = True
            yield Arrival(arrival.at_s * stretch, arrival.lengths) if stretch != 1 else arrival
        if not some:
            raise self._empty()

    def _empty(self) -> ConfigError:
        limited = self._limits != Limits(cut=self._limits.cut)
        why = "no request is within max_prompt and max_output" if limited else "no request in it"
        return ConfigError(f"workload {self.text}: {why}", param="workload")


def open_workload(
    text: str, seed: int = 0, count_tokens: CountTokens | None = None
) -> RequestSource:
    """The workload a specification describes, e.g. `azure-conv:FILE.csv,rate=2.5`.

    `count_tokens` is a tokenizer for sources of text; without, tokens are estimated from
    characters. ConfigError names the option, TraceError the file, line and column.
    """
    return RequestSource(text, parse_spec(text), seed, count_tokens)
