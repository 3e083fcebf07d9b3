"""Seconds per layer of a slice, by batch size: what the planner's tables hold, measured.

Prefill by tokens in the batch, decode by requests. A point is the median of repeated steps after a
warm-up; a step's whole time over the number of layers, nothing subtracted. Both phases grow in turn
until a size does not fit or takes longer than the time there is. Blocking; no files here.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from helix_mq.errors import CapacityError, ConfigError
from helix_mq.step_tables import StepTables
from nodes.kv_cache import KvCache
from nodes.loading import room_tokens
from nodes.model.slice import ModelSlice
from nodes.stepping import Span, Stepper, pages_for

PREFILL: Final = "prefill"
DECODE: Final = "decode"
PREFILL_SIZES: Final = (1, *(16 << n for n in range(11)))
DECODE_SIZES: Final = tuple(1 << n for n in range(11))
PROMPT_TOKENS: Final = 750
CONTEXT_TOKENS: Final = 870
"""The middle of an answer of 240 tokens to a prompt of 750: the usual request of the Azure trace as
the published system uses it (Helix, ASPLOS 2025), and the planner's default workload."""

_LEAST_POINTS: Final = 2
"""What a table must have; measured whatever time it takes."""
_LEAST_REPEATS: Final = 3
_MOST_REPEATS: Final = 25
_POINT_S: Final = 0.5
"""After which a point has repeats enough."""

_WARM_UP_S: Final = 0.3

LIMIT: Final = "the largest size"
ROOM: Final = "KV room"
MEMORY: Final = "device memory"
TIME: Final = "time"

OnPoint = Callable[[str, int], None]
"""Called before each point: phase, batch."""


@dataclass(frozen=True, slots=True)
class Point:
    """Seconds per layer of a step with `batch` tokens (prefill) or requests (decode)."""

    batch: int
    median_s: float
    best_s: float
    repeats: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured. `prefill_end`, `decode_end`: why there is no larger size.

    busy_share: of the processors, what other programs used just before; 0 where a GPU computes.
    """

    context_tokens: int
    prefill: tuple[Point, ...]
    decode: tuple[Point, ...]
    prefill_end: str
    decode_end: str
    busy_share: float = 0.0

    def tables(self) -> StepTables:
        prefill, decode = (
            tuple((float(p.batch), p.median_s) for p in points)
            for points in (self.prefill, self.decode)
        )
        return StepTables(prefill=prefill, decode=decode)


def most_pages(layers: int, max_context: int, context_tokens: int, page_tokens: int) -> int:
    """Layer-pages that the largest sizes need: a cache that is larger has no use here."""
    context = min(context_tokens, max_context - 1)
    prompt = min(PROMPT_TOKENS, max_context)
    return max(
        pages_for(_decodes(DECODE_SIZES[-1], context), layers, page_tokens),
        pages_for(_prompts(PREFILL_SIZES[-1], prompt), layers, page_tokens),
    )


def measure(
    model: ModelSlice,
    cache: KvCache,
    context_tokens: int,
    max_seconds: float,
    on_point: OnPoint = lambda phase, batch: None,
) -> Profile:
    """The profile of a slice; takes `max_seconds` or a little more, longer for two points a phase.

    ConfigError when there is no room for two points. `context_tokens` is cut to the model's limit
    and so that two requests find room.
    """
    room = room_tokens(model, cache)
    # Two requests of whole pages: a table needs two points.
    shared = cache.pool.total_pages // (2 * len(model.layers)) * cache.page_tokens
    context = min(context_tokens, model.config.max_context - 1, shared - 1)
    if context < 1:
        raise ConfigError(
            f"there is KV room for {room} tokens of {model.layers}: too little to measure two "
            "requests at once; give fewer layers or more memory",
            param="layers",
        )
    prompt = min(PROMPT_TOKENS, model.config.max_context, room)
    stepper = Stepper(model, cache)
    ends_s = time.perf_counter() + max_seconds
    _warm_up(stepper, [Span(0, 1)], min(_WARM_UP_S, max_seconds))
    phases = (
        _Phase(stepper, PREFILL, PREFILL_SIZES, lambda n: _prompts(n, prompt)),
        _Phase(stepper, DECODE, DECODE_SIZES, lambda n: _decodes(n, context)),
    )
    for number in itertools.count():
        growing = [phase for phase in phases if phase.end is None]
        if not growing:
            break
        # Half of what is left for each, so that a slow phase does not keep the other from growing.
        phase = growing[number % len(growing)]
        left_s = (ends_s - time.perf_counter()) / len(growing)
        phase.grow(left_s, on_point)
    prefill, decode = phases
    return Profile(
        context_tokens=context,
        prefill=tuple(prefill.points),
        decode=tuple(decode.points),
        prefill_end=prefill.end or LIMIT,
        decode_end=decode.end or LIMIT,
    )


def _warm_up(stepper: Stepper, spans: Sequence[Span], seconds: float) -> None:
    """Libraries load on first use, and clocks rise under load."""
    with stepper.step(spans) as step:
        spent_s = step.run_s()
        while spent_s < seconds:
            spent_s += step.run_s()


class _Phase:
    """One table in the making: its points so far, and why it ended if it has."""

    def __init__(
        self,
        stepper: Stepper,
        name: str,
        sizes: Sequence[int],
        spans: Callable[[int], list[Span]],
    ) -> None:
        self._stepper = stepper
        self._name = name
        self._sizes = sizes
        self._spans = spans
        self.points: list[Point] = []
        self.end: str | None = None
        self._around_s = 0.0
        """Of the last point, beside its steps: pages to reserve and to fill."""

    def grow(self, left_s: float, on_point: OnPoint) -> None:
        """One more point, or the end."""
        size = self._sizes[len(self.points)]
        spans = self._spans(size)
        enough = len(self.points) >= _LEAST_POINTS
        if not self._stepper.fits(spans):
            self._stop(ROOM)
        elif enough and self._expected_s(size) > left_s:
            self._stop(TIME)
        else:
            on_point(self._name, size)
            started_s = time.perf_counter()
            try:
                point = _point(self._stepper, size, spans, left_s)
                self.points.append(point)
                steps_s = point.median_s * self._stepper.num_layers * (1 + point.repeats)
                self._around_s = max(0.0, time.perf_counter() - started_s - steps_s)
            except torch.OutOfMemoryError:
                # The failed step's tensors are garbage by now; others need their memory.
                torch.cuda.empty_cache()
                self._stop(MEMORY)
            if len(self.points) == len(self._sizes):
                self.end = LIMIT

    def _stop(self, why: str) -> None:
        if len(self.points) < _LEAST_POINTS:
            raise CapacityError(
                f"{self._name}: no {why} for a batch of {self._sizes[len(self.points)]}; a table "
                "needs two sizes: give fewer layers or more memory",
                param="layers",
            )
        self.end = why

    def _expected_s(self, size: int) -> float:
        """Of a point with the fewest repeats, if time grows as the batch does."""
        last = self.points[-1]
        steps_s = last.median_s * self._stepper.num_layers * (1 + _LEAST_REPEATS)
        return (steps_s + self._around_s) * size / last.batch


def _point(stepper: Stepper, size: int, spans: Sequence[Span], left_s: float) -> Point:
    """Measures for `_POINT_S`, or until the fewest repeats are done where steps are long."""
    times: list[float] = []
    with stepper.step(spans) as step:
        step.run_s()
        most_s = min(_POINT_S, left_s)
        while len(times) < _LEAST_REPEATS or (
            len(times) < _MOST_REPEATS and math.fsum(times) < most_s
        ):
            times.append(step.run_s())
    layers = stepper.num_layers
    return Point(size, statistics.median(times) / layers, min(times) / layers, len(times))


def _prompts(tokens: int, prompt_tokens: int) -> list[Span]:
    """Whole prompts, and the beginning of one with what is left."""
    whole, rest = divmod(tokens, prompt_tokens)
    return [Span(0, prompt_tokens)] * whole + ([Span(0, rest)] if rest else [])


def _decodes(requests: int, context_tokens: int) -> list[Span]:
    return [Span(context_tokens, 1)] * requests
