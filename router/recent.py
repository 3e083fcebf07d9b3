"""Times to first token and between tokens over the last minutes, as percentiles. Pure.

Ten-second slots of logarithmic buckets: a fixed 60 KiB however many tokens there are, an index and
an addition per token, and percentiles that are off by less than 5%.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from helix_mq.clock import Clock

SLOT_S = 10.0
SLOTS = 30
_LEAST_S = 1e-4
_PER_OCTAVE = 8
"""Buckets: each is 9% wide."""
_BUCKETS = 24 * _PER_OCTAVE
"""Up to 1,600 s."""
_FACTOR = _PER_OCTAVE / math.log(2)


class Percentiles(msgspec.Struct, frozen=True):
    """In seconds; all 0 where `count` is."""

    count: int = 0
    p50_s: float = 0.0
    p90_s: float = 0.0
    p99_s: float = 0.0


class RecentSlot(msgspec.Struct, frozen=True):
    """What was measured in one slot of SLOT_S; `at_s` is its beginning in Unix time."""

    at_s: float
    output_tokens: int
    ttft: Percentiles
    itl: Percentiles


@dataclass(slots=True)
class _Slot:
    number: int
    tokens: int = 0
    ttft: array[int] = field(default_factory=lambda: array("I", bytes(4 * _BUCKETS)))
    itl: array[int] = field(default_factory=lambda: array("I", bytes(4 * _BUCKETS)))


class Recent:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slots: deque[_Slot] = deque(maxlen=SLOTS)

    def token(self, now_s: float, gap_s: float | None, first_s: float | None) -> None:
        """One output token at `now_s` of the clock: so long after the one before, or so long after
        its request came."""
        slot = self._slot(now_s)
        slot.tokens += 1
        if gap_s is not None:
            slot.itl[_bucket(gap_s)] += 1
        elif first_s is not None:
            slot.ttft[_bucket(first_s)] += 1

    def _slot(self, now_s: float) -> _Slot:
        number = int(now_s / SLOT_S)
        slots = self._slots
        if not slots or slots[-1].number < number:
            slots.append(_Slot(number))
        return slots[-1]

    def _live(self) -> list[_Slot]:
        first = int(self._clock.now_s() / SLOT_S) - SLOTS + 1
        return [slot for slot in self._slots if slot.number >= first]

    def ttft(self) -> Percentiles:
        """Of the last SLOTS * SLOT_S seconds."""
        return _percentiles(_summed(slot.ttft for slot in self._live()))

    def itl(self) -> Percentiles:
        return _percentiles(_summed(slot.itl for slot in self._live()))

    def output_tokens_per_s(self) -> float:
        """Over the last slot that is whole and the one that is not."""
        now_s = self._clock.now_s()
        number = int(now_s / SLOT_S)
        tokens = sum(slot.tokens for slot in self._slots if slot.number >= number - 1)
        return tokens / (now_s - (number - 1) * SLOT_S)

    def history(self) -> tuple[RecentSlot, ...]:
        """Slots in which there was a token, oldest first."""
        offset_s = self._clock.wall_s() - self._clock.now_s()
        return tuple(
            RecentSlot(
                slot.number * SLOT_S + offset_s,
                slot.tokens,
                _percentiles(slot.ttft),
                _percentiles(slot.itl),
            )
            for slot in self._live()
        )


def _bucket(seconds: float) -> int:
    if seconds <= _LEAST_S:
        return 0
    return min(int(math.log(seconds / _LEAST_S) * _FACTOR), _BUCKETS - 1)


def _summed(slots: Iterable[array[int]]) -> Sequence[int]:
    return [sum(column) for column in zip(*slots, strict=True)]


def _percentiles(counts: Sequence[int]) -> Percentiles:
    count = sum(counts)
    if not count:
        return Percentiles()
    return Percentiles(count, *(_at(counts, count, share) for share in (0.5, 0.9, 0.99)))


def _at(counts: Sequence[int], count: int, share: float) -> float:
    """The middle of the bucket in which so large a share of all is reached."""
    wanted = share * count
    seen = 0
    for bucket, many in enumerate(counts):
        seen += many
        if many and seen >= wanted:
            return _LEAST_S * math.exp((bucket + 0.5) / _FACTOR)
    raise AssertionError("a share of more than everything")
