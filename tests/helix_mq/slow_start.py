"""A simulated wire for tests of probes."""

from __future__ import annotations

from helix_mq.clock import VirtualClock
from helix_mq.link_probe import PADDING_BYTES, TRAIN_EVERY_S, LinkProbes


class SlowStart:
    """A wire as TCP uses it: after a pause a window of ten packets, which grows by what is
    acknowledged, and never more under way than the window."""

    FIRST_BYTES = 14_600

    def __init__(self, rate: float, trip_s: float) -> None:
        self.clock = VirtualClock()
        self.probes = LinkProbes(self.clock)
        self._rate, self._trip_s = rate, trip_s
        self._window = float(self.FIRST_BYTES)
        self._total = 0
        self.trains: list[int] = []

    def until_known(self) -> None:
        for _ in range(100):
            self._beat()
            if self.probes.bytes_per_s:
                return

    def minute(self) -> None:
        for _ in range(int(TRAIN_EVERY_S) + 1):
            self._beat()

    def _beat(self) -> None:
        self._window = float(self.FIRST_BYTES)
        self._train()
        while self.probes.climbing:
            if not self._train():
                break
        self.clock.advance(1.0)

    def _train(self) -> int:
        pieces = self.probes.train_pieces()
        if not pieces:
            return 0
        self.trains.append(pieces)
        start, at_s = self._total, self.clock.now_s()
        nbytes = pieces * PADDING_BYTES
        self._total += nbytes
        self.probes.train_sent(start, self._total, start)
        arrived, sends_s = 0.0, at_s
        while arrived < nbytes:
            flight = min(self._window, nbytes - arrived)
            whole = int(arrived // PADDING_BYTES)
            for piece in range(whole + 1, int((arrived + flight) // PADDING_BYTES) + 1):
                due_s = sends_s + self._trip_s + (piece * PADDING_BYTES - arrived) / self._rate
                self.clock.advance(max(0.0, due_s - self.clock.now_s()))
                self.probes.acknowledged(start + piece * PADDING_BYTES, self._trip_s)
            arrived += flight
            sends_s += max(self._trip_s, flight / self._rate)
            self._window += flight
        return pieces
