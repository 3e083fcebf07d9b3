"""A simulated long wire as TCP uses it, for tests of the sending end of a link."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from helix_mq.clock import VirtualClock
from helix_mq.frames import frame_bytes
from helix_mq.inlink import ACKNOWLEDGE_BYTES, ACKNOWLEDGE_EVERY_S
from helix_mq.messages.data import Grant
from helix_mq.outlink import OutLink, PeerAddress
from helix_mq.transport import ChannelStatistics, Parts
from tests.helix_mq.turns import Turns

CREDIT_BYTES = 64 << 20
_PACKET_BYTES = 1460
_FIRST_BYTES = 10 * _PACKET_BYTES
_IDLE_S = 0.2
"""After which TCP starts slowly again (its least time-out)."""


class Arrival(NamedTuple):
    """One message: its size, when it was handed over and when its last byte was there."""

    nbytes: int
    sent_at_s: float
    at_s: float


class LongWire(Turns):
    """A link's connection: a window of ten packets that grows by what is acknowledged, as long as
    it is what holds TCP up; half a round trip each way; and a receiver that acknowledges messages
    as `helix_mq.inlink` does, what is little once a second, and consumes all at once."""

    def __init__(self, bytes_per_s: float, trip_s: float) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.link = OutLink(PeerAddress("b", 1, "mem://b"), self.clock, CREDIT_BYTES, self.soon)
        self.arrivals: list[Arrival] = []
        self._bytes_per_s, self._trip_s = bytes_per_s, trip_s
        self._due: list[tuple[float, int, Callable[[int], None], int]] = []
        self._order = itertools.count()
        self._ends: deque[tuple[int, int, float]] = deque()
        self._handed = self._left = self._under_way = self._received = self._told = 0
        self._window = _FIRST_BYTES
        self._free_s = self._left_at_s = 0.0
        self._tells = False
        self._told_at_s = -1.0
        self.link.connection, self.link.connected = self, True
        self.link.begin(1)
        self.link.granted(Grant("b", 1, CREDIT_BYTES, 0))

    def send(self, parts: Parts) -> bool:
        nbytes = frame_bytes(list(parts))
        self._handed += nbytes
        self._ends.append((self._handed, nbytes, self.clock.now_s()))
        self._leave()
        return True

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(0, 0, len(self.arrivals), self._handed, {}, {}, 0, 0, 0, 0)

    async def close(self) -> None:
        """Nothing is open."""

    def run(self, seconds: float) -> None:
        """Lets so much time pass."""
        self.turn()
        until_s = self.clock.now_s() + seconds
        while self._due and self._due[0][0] <= until_s:
            at_s, _, what, nbytes = heapq.heappop(self._due)
            self.clock.advance(max(0.0, at_s - self.clock.now_s()))
            what(nbytes)
            self.turn()
        self.clock.advance(max(0.0, until_s - self.clock.now_s()))

    def _at(self, at_s: float, what: Callable[[int], None], nbytes: int) -> None:
        heapq.heappush(self._due, (at_s, next(self._order), what, nbytes))

    def _leave(self) -> None:
        now = self.clock.now_s()
        if not self._under_way and now - self._left_at_s > max(_IDLE_S, 2 * self._trip_s):
            self._window = _FIRST_BYTES
        while self._left < self._handed and self._under_way < self._window:
            # Packets leave by the handful where there are many.
            nbytes = min(self._handed - self._left, max(_PACKET_BYTES, self._window // 64))
            self._left += nbytes
            self._under_way += nbytes
            self._left_at_s = now
            self._free_s = max(now, self._free_s) + nbytes / self._bytes_per_s
            self._at(self._free_s + self._trip_s / 2, self._arrive, nbytes)
            self._at(self._free_s + self._trip_s, self._tcp_acknowledged, nbytes)

    def _tcp_acknowledged(self, nbytes: int) -> None:
        if 2 * self._under_way >= self._window < 2 * self._bytes_per_s * self._trip_s + 100_000:
            self._window += nbytes
        self._under_way -= nbytes
        self._leave()

    def _arrive(self, nbytes: int) -> None:
        self._received += nbytes
        while self._ends and self._ends[0][0] <= self._received:
            _, size, sent_at_s = self._ends.popleft()
            self.arrivals.append(Arrival(size, sent_at_s, self.clock.now_s()))
            self._at(self.clock.now_s() + 1.0, self._tell, 0)
        whole = self._ends[0][0] - self._ends[0][1] if self._ends else self._handed
        if not self._tells and whole - self._told >= ACKNOWLEDGE_BYTES:
            self._tells = True
            self._at(max(self.clock.now_s(), self._told_at_s + ACKNOWLEDGE_EVERY_S), self._tell, 0)

    def _tell(self, _: int) -> None:
        self._tells = False
        self._told_at_s = max(self._told_at_s, self.clock.now_s())
        self._told = self._ends[0][0] - self._ends[0][1] if self._ends else self._handed
        self._at(self._told_at_s + self._trip_s / 2, self._granted, self._told)

    def _granted(self, received: int) -> None:
        self.link.granted(Grant("b", 1, received + CREDIT_BYTES, received))
