"""A place of a ring on an event loop: what its messages mean, whoever carries them."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from abc import ABC, abstractmethod

from bench.bus.types import Load, Measured, Spec
from helix_mq.transport.pump import SLICE_MESSAGES, SLICE_S

TICK_S = 0.001
BURST = SLICE_MESSAGES
"""Messages a source sends in one turn of its loop, at most."""
BURST_S = SLICE_S
"""What a turn of sending may take: as a slice of receiving does in our transport."""


class LoopPlace(ABC):
    """Sub-classes carry: they call `arrived` per message, `writable` when there is room again."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.endpoint = ""
        self._load = Load("trips", 0)
        self._left = 0
        self._goes_on = False
        self._sending = False
        """A stream has begun: news of room that comes late, of the load before, begins none."""
        self._done = asyncio.Event()
        self._end_s = 0.0
        self._sent_s = 0.0
        self._trips_s: list[float] = []
        self._ticks = LoopTicks()

    @abstractmethod
    async def bind(self) -> None:
        """Sets `endpoint`."""

    @abstractmethod
    async def connect(self, endpoint: str) -> None:
        """To the next place; returns when messages may be sent."""

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    def send_one(self) -> bool:
        """Sends a message. False: no room, `writable` is called when there is."""

    @abstractmethod
    def prepare(self) -> None:
        """Begins a load; `streams` says which kind."""

    @property
    def streams(self) -> bool:
        return self._load.mode != "trips"

    @property
    def is_last(self) -> bool:
        return self.spec.place == self.spec.places - 1

    def arm(self, load: Load) -> None:
        """Before any place starts."""
        self._load, self._left = load, load.count
        self._trips_s = []
        self._done.clear()
        self.prepare()
        if load.mode == "copies":
            tracemalloc.start()
            tracemalloc.reset_peak()
        self._traced_before = tracemalloc.get_traced_memory()[0]
        self._cpu_s = time.process_time()
        self._ticks.start()

    async def run(self) -> Measured:
        """This place's share, to its end."""
        start_s = time.perf_counter()
        if self.spec.place == 0:
            self._sending = self.streams
            if self.streams:
                self.writable()
            else:
                self._next_trip()
        await self._done.wait()
        lag_s = self._ticks.stop()
        traced = tracemalloc.get_traced_memory()[1] - self._traced_before
        if self._load.mode == "copies":
            tracemalloc.stop()
        cpu_s = time.process_time() - self._cpu_s
        return Measured(start_s, self._end_s, cpu_s, tuple(self._trips_s), lag_s, traced)

    def writable(self) -> None:
        """Goes on with the stream."""
        if self._goes_on or not self._sending:
            return
        until_s = time.perf_counter() + BURST_S
        for _ in range(min(BURST, self._left)):
            if not self.send_one():
                return
            self._left -= 1
            if time.perf_counter() > until_s:
                break
        if self._left:
            self._goes_on = True
            asyncio.get_running_loop().call_soon(self._go_on)
        elif not self._done.is_set():
            self._finish()

    def _go_on(self) -> None:
        self._goes_on = False
        self.writable()

    def arrived(self, count: int = 1) -> None:
        """So many whole messages came in, one of a trip; where they go on, they have."""
        if self.spec.place == 0:
            self._trips_s.append(time.perf_counter() - self._sent_s)
            self._left -= 1
            if self._left > 0:
                self._next_trip()
                return
        else:
            self._left -= count
        if self._left == 0:
            self._finish()

    def _next_trip(self) -> None:
        self._sent_s = time.perf_counter()
        if not self.send_one():
            raise RuntimeError("no room for a single message")

    def _finish(self) -> None:
        self._sending = False
        self._end_s = time.perf_counter()
        self._done.set()


class LoopTicks:
    """How long the loop's own work holds up a timer.

    What is late because another process had the core does not count: no more than the CPU time this
    thread took in the meantime.
    """

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._worst_s = 0.0

    def start(self) -> None:
        self._worst_s = 0.0
        self._next()

    def stop(self) -> float:
        if self._timer is not None:
            self._timer.cancel()
        return self._worst_s

    def _next(self) -> None:
        self._due_s = time.perf_counter() + TICK_S
        self._cpu_s = time.thread_time()
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        late_s = time.perf_counter() - self._due_s
        self._worst_s = max(self._worst_s, min(late_s, time.thread_time() - self._cpu_s))
        self._next()
