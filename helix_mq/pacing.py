"""How many bytes may be under way on a link, so that what goes next does not stand in a long queue.

Pure, with an injected clock. ZeroMQ and the kernel buffer megabytes and send them in order: once
a prompt's chunks are in there, a decode behind them waits for all of them. So bulk is handed over
only while about as much is under way as the link carries in a round trip and a little more. Rate
and round trip are taken from the receiver's acknowledgements, the rate as in BBR (Cardwell et al.,
ACM Queue 2016): what was delivered between a message's sending and its acknowledgement, per time,
or per the time in which it was sent if that is longer: acknowledgements may come all at once.

Few frames show a link as slow as they are few. Probes know better (`helix_mq.link_probe`), and are
believed until a window that was full has shown less. A link on which none has counted, as it is new
or has never been idle, is searched with the first prompt: as much more is under way with each round
trip as came in the last one, until rounds are not faster any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from helix_mq.clock import Clock

FIRST_PIECE_BYTES: Final = 128 * 1024
"""While it is not known what the link carries."""
FIRST_WINDOW_BYTES: Final = 288 * 1024
"""Under way at first on such a link: two pieces and their headers. With one, each waits for the
other's acknowledgement, and the search finds nothing."""
MIN_WINDOW_BYTES: Final = 104 * 1024
"""Never less, however slow the link: two pieces, what a receiver may not have told yet, and their
headers. Without room for these the third piece waited, and two in a round trip of 100 ms were taken
for all that comes through, for good."""
GAIN: Final = 1.25
"""Of the round trip: more than one, so that a rate that was too low can rise."""
QUEUE_S: Final = 0.020
"""What bulk may add to the wait of a decode behind it."""
BURST_S: Final = 2 * QUEUE_S
"""Bulk that an empty link takes at once, in seconds of its rate."""
RATE_MEMORY_S: Final = 10.0
TRIP_MEMORY_S: Final = 60.0
PROBE_S: Final = 20.0
"""A link that is always full shows its queue as round trip. So this often it is let run nearly
empty, until one round trip has been seen."""
SEARCH_GAIN: Final = 3.0
"""Of the round trip, until rounds of a full window have shown what the link carries: what is
acknowledged left a round trip ago, and each time twice as much goes, as in TCP's own slow start."""
SEARCH_GROWTH: Final = 1.25
"""A round that is not faster than the best before by so much has found nothing more."""
SEARCH_ROUNDS: Final = 2
"""So many that are not, and not slower by that either, end the search."""
SLOW_ROUNDS: Final = 12
"""So many slower ones do as well: after a pause TCP starts slowly, but these are 60 MB of it."""
FULL_MARGIN: Final = 2.0
"""A window that is full holds more than a round trip; what comes through is more than half of what
the link carries. So no more than this times that much is believed of probes."""
_MAX_SENT: Final = 4096


class _Sent(msgspec.Struct, frozen=True, gc=False):
    # One per frame: a NamedTuple takes three times as long to make.
    total_bytes: int
    at_s: float
    delivered_bytes: int
    delivered_at_s: float
    from_s: float
    """When the last message was sent that had been acknowledged by then."""
    calm: bool
    """Nothing to speak of was under way before it."""


class LinkPacer:
    """One connection's estimate. `sent` and `acknowledged` take running totals of its bytes."""

    def __init__(self, clock: Clock, probed: Callable[[], float] = lambda: 0.0) -> None:
        """`probed`: bytes per second that probes found lately; 0 for none."""
        self._clock = clock
        self._probed = probed
        self._sent_bytes = 0
        self._delivered_bytes = 0
        self._delivered_at_s = clock.now_s()
        self._from_s = clock.now_s()
        self._log: deque[_Sent] = deque(maxlen=_MAX_SENT)
        self._probe_at_s = clock.now_s() + PROBE_S
        # Acknowledged since the link was last empty: an empty link takes little at once, then as
        # much more as comes through, or the whole window would stand in its queue.
        self._ramp_bytes = 0
        self._rates = _Best(RATE_MEMORY_S, largest=True)
        self._trips = _Best(TRIP_MEMORY_S, largest=False)
        # Of messages that were sent before the window was last found full, and how full it was.
        self._full_sent_bytes = self._full_bytes = 0
        self._full_rates = _Best(RATE_MEMORY_S, largest=True)
        # Of the search for what the link carries: where its present round ends, in delivered bytes,
        # its rate and the best of one, and how many have found nothing more since.
        self._round_ends_bytes = 0
        self._round_rate = self._best_round_rate = 0.0
        self._flat_rounds = self._slow_rounds = 0

    @property
    def under_way_bytes(self) -> int:
        return self._sent_bytes - self._delivered_bytes

    @property
    def bytes_per_s(self) -> float:
        """The link's rate as seen lately; 0 where nothing was acknowledged yet."""
        return self._rates.value or 0.0

    @property
    def carries_bytes_per_s(self) -> float:
        """What the link is taken to carry, by frames and probes; 0 where nothing is known."""
        seen, probed = self.bytes_per_s, self._probed()
        if probed <= seen:
            return seen
        self._full_rates.forget(self._clock.now_s())
        full = self._full_rates.value
        return probed if full is None else max(seen, min(probed, FULL_MARGIN * full))

    @property
    def measured(self) -> bool:
        """Whether it is known what the link carries: from probes, or since more under way has
        brought no more. What few frames show is the least it may be."""
        if self._probed() > 0:
            return True
        self._full_rates.forget(self._clock.now_s())
        if self._full_rates.value is None:
            self._best_round_rate = 0.0
            self._flat_rounds = self._slow_rounds = 0
        return self._flat_rounds >= SEARCH_ROUNDS or self._slow_rounds >= SLOW_ROUNDS

    @property
    def round_trip_s(self) -> float:
        """The shortest round trip seen lately; 0 where none was."""
        return self._trips.value or 0.0

    @property
    def window_bytes(self) -> float:
        return self._window()[0]

    def _window(self) -> tuple[float, bool]:
        """Its bytes, and whether that is all the link is to have at once."""
        rate = self.carries_bytes_per_s
        if not rate:
            return float(FIRST_WINDOW_BYTES), False
        if self._clock.now_s() >= self._probe_at_s:
            return float(MIN_WINDOW_BYTES), False
        if self.measured:
            full = max(float(MIN_WINDOW_BYTES), rate * (GAIN * self.round_trip_s + QUEUE_S))
            least = float(MIN_WINDOW_BYTES)
        else:
            least = float(FIRST_WINDOW_BYTES)
            full = max(least, rate * (SEARCH_GAIN * self.round_trip_s + QUEUE_S))
        ramp = max(least, rate * BURST_S) + self._ramp_bytes
        return (full, True) if full <= ramp else (ramp, False)

    @property
    def sent_bytes(self) -> int:
        return self._sent_bytes

    @property
    def delivered_bytes(self) -> int:
        """As far as it is acknowledged."""
        return self._delivered_bytes

    def tripped(self, trip_s: float) -> None:
        """A small message went there and back in so many seconds."""
        self._trips.add(self._clock.now_s(), trip_s)

    def allows(self, nbytes: int) -> bool:
        """Whether bulk of this size may go now; always, when nothing is under way."""
        under_way = self.under_way_bytes
        if under_way <= 0:
            return True
        window, whole = self._window()
        # A piece that was cut when the link seemed faster must not wait for it to be empty: decodes
        # may be under way all the time.
        if under_way + min(nbytes, window / 2) <= window:
            return True
        if whole:
            self._full_sent_bytes, self._full_bytes = self._sent_bytes, under_way
        return False

    def sent(self, nbytes: int) -> None:
        now = self._clock.now_s()
        under_way = self._sent_bytes - self._delivered_bytes
        if under_way <= 0:
            # A rate must not count the time in which there was nothing to send.
            self._delivered_at_s = self._from_s = now
            self._ramp_bytes = 0
        self._sent_bytes += nbytes
        calm = under_way <= MIN_WINDOW_BYTES
        self._log.append(
            _Sent(
                self._sent_bytes,
                now,
                self._delivered_bytes,
                self._delivered_at_s,
                self._from_s,
                calm,
            )
        )

    def acknowledged(self, total_bytes: int) -> None:
        """The receiver has so many bytes in all. Late, repeated and impossible totals are passed
        over."""
        if not self._delivered_bytes < total_bytes <= self._sent_bytes:
            return
        now = self._clock.now_s()
        last: _Sent | None = None
        while self._log and self._log[0].total_bytes <= total_bytes:
            last = self._log.popleft()
        self._ramp_bytes += total_bytes - self._delivered_bytes
        self._delivered_bytes, self._delivered_at_s = total_bytes, now
        if last is None:
            return
        self._trips.add(now, now - last.at_s)
        if last.calm:
            if now >= self._probe_at_s:
                self._ramp_bytes = 0
            self._probe_at_s = now + PROBE_S
        self._from_s = last.at_s
        taken_s = max(now - last.delivered_at_s, last.at_s - last.from_s)
        if taken_s > 0:
            came_bytes = total_bytes - last.delivered_bytes
            self._rates.add(now, came_bytes / taken_s)
            if last.total_bytes <= self._full_sent_bytes and came_bytes >= self._full_bytes:
                self._full_rates.add(now, came_bytes / taken_s)
                self._searched(last.delivered_bytes, came_bytes / taken_s)

    def _searched(self, delivered_bytes: int, rate: float) -> None:
        """What a full window has shown. A round ends with what was sent after it had begun."""
        self._round_rate = max(self._round_rate, rate)
        if delivered_bytes < self._round_ends_bytes:
            return
        rate, best = self._round_rate, self._best_round_rate
        self._round_ends_bytes, self._round_rate = self._delivered_bytes, 0.0
        if rate >= SEARCH_GROWTH * best:
            self._best_round_rate = rate
            self._flat_rounds = self._slow_rounds = 0
        elif rate * SEARCH_GROWTH >= best:
            self._flat_rounds += 1
        else:
            self._slow_rounds += 1


class _Best:
    """The largest or smallest value of the last `memory_s` seconds."""

    def __init__(self, memory_s: float, *, largest: bool) -> None:
        self._memory_s = memory_s
        self._sign = 1.0 if largest else -1.0
        self._kept: deque[tuple[float, float]] = deque()

    def add(self, now_s: float, value: float) -> None:
        kept, sign = self._kept, self._sign
        while kept and sign * kept[-1][1] <= sign * value:
            kept.pop()
        kept.append((now_s, value))
        # `forget` in place.
        oldest_s = now_s - self._memory_s
        while kept[0][0] < oldest_s:
            kept.popleft()

    def forget(self, now_s: float) -> None:
        """What was too long ago."""
        kept = self._kept
        while kept and kept[0][0] < now_s - self._memory_s:
            kept.popleft()

    @property
    def value(self) -> float | None:
        return self._kept[0][1] if self._kept else None
