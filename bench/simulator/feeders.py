"""Where requests come from: a full queue (offline), a clock (online) or so many users who each ask
again when they are answered (closed). No decision on admission.

All feed `Control.submit`; what is admitted, waits or is refused is the core's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from bench.simulator.control import Control
from bench.simulator.timeline import Timeline
from bench.traces.types import Arrival, Lengths

REFUSED_IN_A_ROW = 100
"""From here on only one request is tried after each event, until one is taken."""


class Feeder(Protocol):
    def start(self) -> None: ...

    @property
    def exhausted(self) -> bool:
        """No request will come any more."""
        ...


class OfflineFeeder:
    """Keeps one request waiting, so that every bit of room is taken as soon as it is there.

    No more than `max_prefilling` are without a first token: all at once would start with minutes of
    prompts alone.
    """

    def __init__(
        self, control: Control, lengths: Iterator[Lengths], most: int | None, max_prefilling: int
    ) -> None:
        self._control = control
        self._lengths = lengths
        self._most = most
        self._max_prefilling = max_prefilling
        self._busy = False
        self._refused = 0
        self.exhausted = False

    def start(self) -> None:
        self._control.on_progress = self._feed
        self._feed()

    def _feed(self) -> None:
        control = self._control
        # Submitting is an event itself and comes back here.
        if self._busy or self.exhausted or control.prefilling >= self._max_prefilling:
            return
        self._busy = True
        while control.prefilling < self._max_prefilling and not control.core.statistics().waiting:
            if self._most is not None and control.submitted >= self._most:
                self.exhausted = True
                break
            lengths = next(self._lengths, None)
            if lengths is None:
                self.exhausted = True
                break
            failed = control.failed
            control.submit(lengths)
            self._refused = self._refused + 1 if control.failed > failed else 0
            if self._refused >= REFUSED_IN_A_ROW:
                # Perhaps nothing of this workload fits: time must pass all the same.
                break
        self._busy = False


class ClosedFeeder:
    """Keeps `at_once` requests in the system: for each that ends, the next one comes at once."""

    def __init__(
        self, control: Control, lengths: Iterator[Lengths], most: int | None, at_once: int
    ) -> None:
        self._control = control
        self._lengths = lengths
        self._most = most
        self._at_once = at_once
        self._busy = False
        self.exhausted = False

    def start(self) -> None:
        self._control.on_progress = self._feed
        self._feed()

    def _feed(self) -> None:
        control = self._control
        # Submitting is an event itself and comes back here.
        if self._busy or self.exhausted:
            return
        self._busy = True
        refused = control.failed
        # Users who are refused try again with the next event, or nobody would ever see time pass.
        while (
            control.submitted - control.finished - control.failed < self._at_once
            and control.failed - refused < self._at_once
        ):
            lengths = next(self._lengths, None)
            if lengths is None or (self._most is not None and control.submitted >= self._most):
                self.exhausted = True
                break
            control.submit(lengths)
        self._busy = False


class OnlineFeeder:
    """Submits each arrival at its time, up to `until_s`."""

    def __init__(
        self,
        control: Control,
        arrivals: Iterator[Arrival],
        timeline: Timeline,
        most: int | None,
        until_s: float,
    ) -> None:
        self._control = control
        self._arrivals = arrivals
        self._timeline = timeline
        self._most = most
        self._until_s = until_s
        self.exhausted = False

    def start(self) -> None:
        self._next()

    def _next(self) -> None:
        arrival = next(self._arrivals, None)
        full = self._most is not None and self._control.submitted >= self._most
        if arrival is None or full or arrival.at_s > self._until_s:
            self.exhausted = True
        else:
            self._timeline.at(arrival.at_s, self._arrives, arrival.lengths)

    def _arrives(self, lengths: Lengths) -> None:
        self._control.submit(lengths)
        self._next()
