"""What each API key may ask for in a minute, and at a time. Pure: a clock, and numbers.

Minutes slide in steps of a second, so that no 60 s ever hold more than the limit. Tokens are
counted as they are known: a request starts while the minute's tokens are below the limit, and may
take it over, after which the key waits it off.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from helix_mq.api_keys import KeyLimits
from helix_mq.clock import Clock
from helix_mq.errors import InvalidRequest
from router.gateway.faults import RateLimited

_WINDOW_S = 61
"""A second is counted until 60 s after its end."""
_RETRY_FULL_S = 1.0
"""Nobody knows when a request that is under way ends."""
_SWEEP_AT = 1024


class SlidingMinute:
    """Counts over the last minute."""

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()
        self._total = 0

    def add(self, now_s: float, count: int) -> None:
        # Not left to `total`: nobody asks for it where there is no limit.
        self._trim(now_s)
        second = math.floor(now_s)
        if self._slots and self._slots[-1][0] == second:
            self._slots[-1][1] += count
        else:
            self._slots.append([second, count])
        self._total += count

    def total(self, now_s: float) -> int:
        self._trim(now_s)
        return self._total

    def below_in_s(self, limit: int, now_s: float) -> float:
        """Seconds until the total is below `limit`; 0 if it is."""
        over = self.total(now_s) - limit
        for second, count in self._slots:
            if over < 0:
                break
            over -= count
            if over < 0:
                return second + _WINDOW_S - now_s
        return 0.0

    def _trim(self, now_s: float) -> None:
        while self._slots and now_s - self._slots[0][0] >= _WINDOW_S:
            self._total -= self._slots.popleft()[1]


class _Meter:
    """What one key has asked for."""

    def __init__(self) -> None:
        self.requests = SlidingMinute()
        self.tokens = SlidingMinute()
        self.running = 0

    def idle(self, now_s: float) -> bool:
        return not (self.running or self.requests.total(now_s) or self.tokens.total(now_s))


class Lease:
    """One request of a key, until it is closed."""

    def __init__(self, meter: _Meter, limits: KeyLimits, now_s: Callable[[], float]) -> None:
        self._meter = meter
        self._limits = limits
        self._now_s = now_s
        self._sequences = 1

    def begin(self, sequences: int, prompt_tokens: int) -> None:
        """Before they are submitted. Raises RateLimited, or InvalidRequest for more sequences
        than the key can ever have."""
        limit = self._limits.max_concurrent
        if limit is not None and sequences > limit:
            raise InvalidRequest(
                f"{sequences} sequences in one request: this key may have {limit} at a time "
                "(max_concurrent)",
                param="n",
            )
        more = sequences - self._sequences
        _check_running(self._meter, self._limits, more)
        self._meter.running += more
        self._sequences = sequences
        self.tokens(prompt_tokens)

    def tokens(self, count: int) -> None:
        self._meter.tokens.add(self._now_s(), count)

    def close(self) -> None:
        self._meter.running -= self._sequences
        self._sequences = 0


class Quotas:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._meters: dict[str, _Meter] = {}

    def __len__(self) -> int:
        return len(self._meters)

    def enter(self, owner: str, limits: KeyLimits) -> Lease:
        """A request of `owner` begins. Raises RateLimited, which says which limit it is."""
        now_s = self._clock.now_s()
        meter = self._meters.get(owner)
        if meter is None:
            self._sweep(now_s)
            meter = self._meters[owner] = _Meter()
        _check_minute(meter.requests, limits.requests_per_min, "requests_per_min", now_s)
        _check_minute(meter.tokens, limits.tokens_per_min, "tokens_per_min", now_s)
        _check_running(meter, limits, 1)
        meter.requests.add(now_s, 1)
        meter.running += 1
        return Lease(meter, limits, self._clock.now_s)

    def _sweep(self, now_s: float) -> None:
        """Keys come and go; those that have asked for nothing lately are forgotten."""
        if len(self._meters) >= _SWEEP_AT:
            idle = [owner for owner, meter in self._meters.items() if meter.idle(now_s)]
            for owner in idle:
                del self._meters[owner]


def _check_minute(minute: SlidingMinute, limit: int | None, name: str, now_s: float) -> None:
    if limit is None or minute.total(now_s) < limit:
        return
    wait_s = minute.below_in_s(limit, now_s)
    raise RateLimited(
        f"this key has used its {name} = {limit}; try again in {math.ceil(wait_s)} s",
        param=name,
        retry_after_s=wait_s,
    )


def _check_running(meter: _Meter, limits: KeyLimits, more: int) -> None:
    limit = limits.max_concurrent
    if limit is not None and meter.running + more > limit:
        raise RateLimited(
            f"this key has {meter.running} sequences under way and may have max_concurrent = "
            f"{limit}; wait for one of them to end",
            param="max_concurrent",
            retry_after_s=_RETRY_FULL_S,
        )
