"""Measuring a data link while it is idle: round trip, bandwidth, whether anybody is there. Pure.

A probe without padding comes back at once. Padding is sent as a train of pieces back to back, each
acknowledged like a frame; the bytes between the first acknowledgement and the last, per time, are
the bandwidth (packet trains, as in Dovrolis et al., INFOCOM 2001): the round trip is not in it. A
train starts with two pieces, and doubles while it is too short to be timed, so that on any link a
decode behind it waits about as long as behind a prompt's piece.

A process that was held up reads many acknowledgements at once, which looks like a very fast link.
So a train also counts as taking at least what passed between its start and its last
acknowledgement, less a round trip. A train that says something new is repeated before it is
believed: the median of three counts.

Where the round trip is long, TCP starts each train slowly after a pause: of a wire of 100 Mbit/s
and 40 ms the first trains found 6. There trains follow each other at once, each longer, for as long
as each is faster than the one before: a climb. Two in a row that agree are believed.

Links of several processes often share a wire, and are connected at the same moment. Trains of one
moment share it, too, so links begin at random within some seconds, and go on a little out of step.
"""

from __future__ import annotations

import random
import statistics
from typing import Final, NamedTuple

from helix_mq.clock import Clock

PROBE_EVERY_S: Final = 1.0
PADDING_BYTES: Final = 32 * 1024
"""Of one piece: a receiver acknowledges that much with a message of its own."""
HEADER_BYTES: Final = 1024
"""Of a probe's own message, at most."""
FIRST_PIECES: Final = 2
MOST_PIECES: Final = 32
SHORT_S: Final = 0.020
"""Trains that are over sooner are lengthened: event loops are late by milliseconds at times."""
LONG_S: Final = 10 * SHORT_S
"""Trains that take so long are believed at once: lateness is little of them, and they cost much."""
TRAINS: Final = 3
"""Whose median counts, where the first is another than was known; they follow each other soon."""
AGREES: Final = 1.25
"""A train within this factor of what was known confirms it."""
TRAIN_EVERY_S: Final = 60.0
CONFIRMED_S: Final = 5.0
"""After which trains that found something new are followed by another. What holds a process up for
a while, as loading a slice does, holds all of them up that follow each other at once. Twice as
long each time it was not confirmed."""
_BEGIN_WITHIN_S: Final = 4.0
_OUT_OF_STEP: Final = 0.2
"""Share of TRAIN_EVERY_S that is drawn."""
SHARE: Final = 0.01
"""Of a link's bandwidth that trains may take."""
FORGET_S: Final = 3 * TRAIN_EVERY_S
"""A link that is never idle long enough is known by its frames."""
SLOWEST_BYTES_PER_S: Final = 64 * 1024
"""Answers stand behind what is under way; on a link of unknown rate, this slow at worst."""
GIVE_UP_S: Final = 30.0
"""After which an echo is not waited for any more, where other signs of life came."""
LONG_TRIP_S: Final = 0.015
"""From here on TCP's slow start, ten packets and twice as many with each round trip, is longer than
trains are."""
_CLIMB_FACTOR: Final = 4
_CLIMB_TRAINS: Final = 8
_SLOW_S: Final = 2.0
"""A train of a climb that takes longer is believed without another; processes of a busy machine are
held up for some tenths of a second."""
_CLIMB_TRAIN_S: Final = 0.5
"""Longer than that no train of a climb is to take."""
_CLIMB_PAUSE_S: Final = 0.2
"""After which TCP starts slowly again (its least time-out is 200 ms)."""
_STRIDE_S: Final = 1.5
"""Of silence that one look counts at most: this process may have been stopped itself."""


class _Train(NamedTuple):
    """Running totals of the link's bytes: before it, behind it, and acknowledged when it left."""

    start_bytes: int
    end_bytes: int
    delivered_bytes: int
    at_s: float


class LinkProbes:
    """One connection's probes at its sending end. All totals are the link's running bytes."""

    def __init__(self, clock: Clock, lots: random.Random | None = None) -> None:
        """`lots`: draws when trains leave; without, at once and every minute."""
        self._clock = clock
        self._lots = lots
        self._number = 0
        self._waiting_since_s: float | None = None
        self._probe_at_s = clock.now_s()
        self._looked_s = clock.now_s()
        self._silent_s = 0.0
        self._answered = False
        self._pieces = FIRST_PIECES
        self._train_at_s = clock.now_s() + self._drawn(_BEGIN_WITHIN_S)
        self.train: _Train | None = None
        self._first_ack: tuple[int, float] | None = None
        self._series: list[float] = []
        """Trains' rates that are not believed yet."""
        self._climb: list[float] = []
        """Of trains that follow each other at once."""
        self._climb_bytes = 0
        self._climb_at_s = clock.now_s()
        self._rate = 0.0
        self._confirmed_s = CONFIRMED_S
        self._measured_s = clock.now_s()
        self._bounds = ProbeAllowance(clock, ProbeAllowance.BURST_BYTES * 3 // 4)
        """Within the receiver's, so that it never has reason to refuse a piece."""

    # -- round trip and silence ----------------------------------------------

    def next_probe(self) -> int | None:
        """The number of a probe to send now; None while one is on its way or it is too early."""
        now = self._clock.now_s()
        waits = self._waiting_since_s is not None and now < self._waiting_since_s + GIVE_UP_S
        if waits or now < self._probe_at_s:
            return None
        self._number += 1
        self._waiting_since_s = now
        self._probe_at_s = now + PROBE_EVERY_S
        self._bounds.take(0)
        return self._number

    def echoed(self, number: int) -> float | None:
        """Seconds that the probe took; None for an echo of none."""
        if self._waiting_since_s is None or number != self._number:
            return None
        trip_s = self._clock.now_s() - self._waiting_since_s
        self._waiting_since_s = None
        self._answered = True
        return trip_s

    def heard(self) -> None:
        """Something came from the other end."""
        self._silent_s = 0.0

    def silent_s(self) -> float:
        """For how long nothing was heard with a probe under way. 0 where the other end has never
        answered one. Ask about once a second."""
        now = self._clock.now_s()
        gone_s, self._looked_s = now - self._looked_s, now
        if self._waiting_since_s is None or not self._answered:
            self._silent_s = 0.0
        else:
            # A probe sent within the stride has been waiting for less than it.
            self._silent_s += min(gone_s, _STRIDE_S, now - self._waiting_since_s)
        return self._silent_s

    # -- bandwidth -------------------------------------------------------------

    @property
    def bytes_per_s(self) -> float:
        """As the last trains found; 0 where there was none lately."""
        if self._clock.now_s() - self._measured_s > FORGET_S:
            return 0.0
        return self._rate

    def train_pieces(self) -> int:
        """How many pieces to send back to back now; 0 for none. Ask only while the link has next to
        nothing to do."""
        now = self._clock.now_s()
        if now < self._train_at_s:
            return 0
        if self._climb and now > self._climb_at_s + _CLIMB_PAUSE_S:
            self._end_climb()
        piece_bytes = PADDING_BYTES + HEADER_BYTES + ProbeAllowance.COST_BYTES
        if not self._bounds.take(self._pieces * piece_bytes):
            if self._climb:
                # The link is longer and faster than trains may find out: it carries this at least.
                self._believe(self._climb[-1], self._climb_bytes)
                self._end_climb()
            return 0
        return self._pieces

    @property
    def climbing(self) -> bool:
        """Whether the next train is to follow the last one at once."""
        return bool(self._climb) and self.train is None

    def train_sent(self, start_total: int, end_total: int, delivered_total: int) -> None:
        """The train was handed over. The link's total was `start_total` before it, and of that
        `delivered_total` was acknowledged."""
        now = self._clock.now_s()
        self.train = _Train(start_total, end_total, delivered_total, now)
        self._first_ack = None
        self._train_at_s = now + TRAIN_EVERY_S

    def acknowledged(self, total_bytes: int, round_trip_s: float) -> None:
        """The receiver has so many bytes in all. The round trip is the least one known; 0: none."""
        train = self.train
        if train is None or total_bytes <= train.start_bytes:
            return
        now = self._clock.now_s()
        if self._first_ack is None:
            self._first_ack = (total_bytes, now)
        if total_bytes < train.end_bytes:
            return
        self.train = None
        first_bytes, first_s = self._first_ack
        nbytes, between_s = total_bytes - first_bytes, now - first_s
        whole_s = max(0.0, now - train.at_s - round_trip_s)
        taken_s = max(between_s, whole_s)
        if round_trip_s >= LONG_TRIP_S:
            rate = nbytes / between_s if nbytes and between_s > 0 else 0.0
            if whole_s > 0:
                rate = min(rate, (train.end_bytes - train.delivered_bytes) / whole_s)
            self._climbed(rate, train.end_bytes - train.start_bytes, taken_s, round_trip_s)
            return
        if (taken_s < SHORT_S or not nbytes) and self._pieces < MOST_PIECES:
            # Too short to be believed.
            self._pieces = min(MOST_PIECES, 2 * self._pieces)
            self._train_at_s = now
            return
        if nbytes and between_s > 0:
            rate = nbytes / between_s
            if whole_s > 0:
                rate = min(rate, (train.end_bytes - train.delivered_bytes) / whole_s)
            self._found(rate, train.end_bytes - train.start_bytes, taken_s)
        if taken_s > 4 * SHORT_S and self._pieces > FIRST_PIECES:
            # The link has become slower: a decode must not wait for so much.
            self._pieces = max(FIRST_PIECES, self._pieces // 2)

    def _climbed(self, rate: float, train_bytes: int, taken_s: float, round_trip_s: float) -> None:
        now, known = self._clock.now_s(), self.bytes_per_s
        before = self._climb[-1] if self._climb else 0.0
        self._climb.append(rate)
        self._climb_bytes += train_bytes
        self._climb_at_s = now
        timed = rate > 0 and (taken_s >= SHORT_S or self._pieces >= MOST_PIECES)
        # Neither slow start nor a process that was held up takes so long: the wire does.
        slow = rate > 0 and taken_s > max(_SLOW_S, 8 * round_trip_s)
        if slow or (timed and (_agree(rate, before) or _agree(rate, known))):
            self._believe(rate, self._climb_bytes)
            self._end_climb()
        elif len(self._climb) >= _CLIMB_TRAINS:
            self._believe(statistics.median(self._climb[-TRAINS:]), self._climb_bytes)
            self._end_climb()
        else:
            long_s = min(max(LONG_S, 4 * round_trip_s), _CLIMB_TRAIN_S)
            wanted = int(rate * long_s) // PADDING_BYTES
            most = min(MOST_PIECES, _CLIMB_FACTOR * self._pieces)
            self._pieces = max(self._pieces, min(wanted, most))
            self._train_at_s = now

    def _end_climb(self) -> None:
        self._climb.clear()
        self._climb_bytes = 0
        self._pieces = max(FIRST_PIECES, self._pieces // _CLIMB_FACTOR)

    def _found(self, rate: float, train_bytes: int, taken_s: float) -> None:
        now, known = self._clock.now_s(), self.bytes_per_s
        self._series.append(rate)
        agrees = _agree(rate, known)
        if not agrees and taken_s <= LONG_S and len(self._series) < TRAINS:
            self._train_at_s = now
            return
        found = rate if agrees else statistics.median(self._series)
        self._believe(found, train_bytes, TRAIN_EVERY_S if agrees else self._confirmed_s)
        # Where trains never agree, as on a fast link of busy machines, more often says no more.
        self._confirmed_s = CONFIRMED_S if agrees else min(TRAIN_EVERY_S, 2 * self._confirmed_s)

    def _believe(self, rate: float, train_bytes: int, pause_s: float = TRAIN_EVERY_S) -> None:
        now = self._clock.now_s()
        self._series.clear()
        pause_s -= self._drawn(_OUT_OF_STEP * pause_s)
        if rate > 0:
            self._rate, self._measured_s = rate, now
            pause_s = max(pause_s, train_bytes / (rate * SHARE))
        self._train_at_s = now + pause_s

    def _drawn(self, most: float) -> float:
        return self._lots.uniform(0, most) if self._lots is not None else 0.0


def _agree(a: float, b: float) -> bool:
    return max(a, b) <= AGREES * min(a, b)


class ProbeAllowance:
    """What a receiver takes of one sender's probes: a bucket of bytes that fills slowly."""

    BURST_BYTES: Final = 4 << 20
    REFILL_BYTES_PER_S: Final = 256 * 1024
    COST_BYTES: Final = 4 * 1024
    """Of a probe, whatever its padding."""

    def __init__(self, clock: Clock, burst_bytes: int = BURST_BYTES) -> None:
        self._clock = clock
        self._burst_bytes = float(burst_bytes)
        self._left_bytes = self._burst_bytes
        self._at_s = clock.now_s()

    def take(self, nbytes: int) -> bool:
        """Whether a probe of this size is within bounds."""
        now = self._clock.now_s()
        self._left_bytes = min(
            self._burst_bytes,
            self._left_bytes + (now - self._at_s) * self.REFILL_BYTES_PER_S,
        )
        self._at_s = now
        if self.COST_BYTES + nbytes > self._left_bytes:
            return False
        self._left_bytes -= self.COST_BYTES + nbytes
        return True
