"""When a worker's device gets its next job: steps, and between them chores. Decides nothing else.

A step that the engine can have computed without a thread of Python's begins and ends right here.
All else goes to the device's thread, also where the device has something of another slice's: both
take turns.

Callbacks where a task with futures would be: `choose` gives the next step when the device has no
job, `over` takes what came of it. A task took some ten Python calls more per step and a turn of the
event loop more, and each call costs some 3 us when a step's weights have driven it out of the
processor's caches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from nodes.chores import Chores, Job
from nodes.device import DeviceThread, Errand
from nodes.steps import Batch, StepEngine, StepResult


@dataclass(frozen=True, slots=True)
class StepCalls:
    """What the loop asks of a worker, whose `engine` makes the steps.

    `choose`: the next step; empty for none now. `over(batch, result, error)`: it has ended, both
    None when nobody is to hear of it; gives whether more waits. `idle`: the device has no job.
    `stall_s`: in how many seconds `stalled` is to be called unless a step begins before; None for
    never."""

    engine: StepEngine
    choose: Callable[[], Batch]
    over: Callable[[Batch, StepResult | None, BaseException | None], bool]
    idle: Callable[[], None]
    stall_s: Callable[[], float | None]
    stalled: Callable[[], None]


class StepLoop:
    def __init__(self, device: DeviceThread) -> None:
        self.busy = False
        """The device has a job: KV pages stay as they are."""
        self.chores = Chores()
        self.loop: asyncio.AbstractEventLoop | None = None
        """While run() does."""
        self._calls: StepCalls | None = None
        """While run() does, too: no circle is to keep a slice's weights when it is gone."""
        self._steps = Errand[Batch, StepResult](device, self._back)
        self._jobs = Errand[Job, None](device, self._chore_back)
        self._device = device
        self._begun: Batch = []
        """The step that the engine's own threads run."""
        self._bell: int | None = None
        """What the loop listens to for its end."""
        self._broken: asyncio.Future[None] | None = None
        """Ends run() with what nobody has foreseen."""
        self._rested: asyncio.Future[None] | None = None
        """Of a run() that ends and waits for the job in progress."""
        self._turn_due = False
        self._stall: asyncio.TimerHandle | None = None

    async def run(self, calls: StepCalls) -> None:
        """Steps for ever; ends by cancellation, after the step in progress."""
        self._calls = calls
        self.loop = asyncio.get_running_loop()
        self._broken = self.loop.create_future()
        self._rested = None
        self._turn_due = False
        self.ring()
        try:
            await self._broken
        finally:
            await self._end(self.loop)

    async def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = None
        self._unstall()
        try:
            if self.busy:
                # What the device works on must stay as it is until then.
                self._rested = loop.create_future()
                await self._rested
        finally:
            self._calls = None
            self.chores.give_up()
            if self._bell is not None:
                loop.remove_reader(self._bell)
                self._bell = None
            if self._begun:
                # Nobody waits for it any more.
                self._begun = []
                self._device.rested()

    def ring(self) -> None:
        """There may be something to do. In the loop's next turn, as more may come in this one."""
        if not self._turn_due and not self.busy and self.loop is not None:
            self._turn_due = True
            self.loop.call_soon(self._turn)

    def now(self) -> None:
        """As ring(), when nothing more can come: that saves a turn."""
        if not self.busy:
            self._turn()

    def again(self, batch: Batch, payload: memoryview) -> bool:
        """Begins a step of a foreseen frame's rows, where they were the last one's, the engine can
        go on from that by itself, and nothing else is to be done: False where not. Only for what
        `choose` would give next."""
        loop, calls, device = self.loop, self._calls, self._device
        if self.busy or loop is None or calls is None or self.chores.waiting:
            return False
        if device.since_s is not None or device.elsewhere_since_s is not None:
            return False
        try:
            bell = calls.engine.again(batch, payload)
        except Exception:
            return False
        if bell is None:
            return False
        self.busy = True
        if self._stall is not None:
            self._unstall()
        self._began(batch, bell, loop)
        return True

    def _turn(self) -> None:
        self._turn_due = False
        loop, calls = self.loop, self._calls
        if self.busy or loop is None or calls is None:
            return
        try:
            if self.chores.waiting:
                self.busy = True
                self._jobs.go(_do, self.chores.waiting[0][0], loop)
            elif batch := calls.choose():
                self.busy = True
                if self._stall is not None:
                    self._unstall()
                device = self._device
                if (
                    device.since_s is not None
                    or device.elsewhere_since_s is not None
                    or not self._runs_by_itself(calls.engine, batch, loop)
                ):
                    self._steps.go(calls.engine.run, batch, loop)
            elif (stall_s := calls.stall_s()) is None:
                self._unstall()
            elif self._stall is None:
                # Kept over rings: peers repeat their grants all the time, which must not put it
                # off.
                self._stall = loop.call_later(stall_s, self._stalled)
        except BaseException as e:
            # What the device did not take is not waited for.
            self.busy = False
            self._break(e)

    def _runs_by_itself(
        self, engine: StepEngine, batch: Batch, loop: asyncio.AbstractEventLoop
    ) -> bool:
        """False where the step is for the device's thread, also to say what is wrong with it."""
        try:
            bell = engine.begin(batch)
        except Exception:
            return False
        if bell is None:
            return False
        self._began(batch, bell, loop)
        return True

    def _began(self, batch: Batch, bell: int, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = batch
        self._device.elsewhere_since_s = self._device.clock.now_s()
        if bell != self._bell:
            if self._bell is not None:
                loop.remove_reader(self._bell)
            self._bell = bell
            loop.add_reader(bell, self._rung)

    def _rung(self) -> None:
        batch, self._begun = self._begun, []
        calls, loop = self._calls, self.loop
        if not batch or calls is None:
            return
        self._device.elsewhere_since_s = None
        if self._device.since_s is not None:
            self._device.rested()
        error: BaseException | None = None
        result: StepResult | None = None
        try:
            result = calls.engine.end()
        except BaseException as e:
            error = e
        if result is None and error is None and loop is not None:
            self._steps.go(calls.engine.run, batch, loop)
        else:
            self._back(batch, result, error)

    def _unstall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stalled(self) -> None:
        self._stall = None
        if self._calls is None:
            return
        try:
            self._calls.stalled()
        except BaseException as e:
            self._break(e)
        self.ring()

    def _back(self, batch: Batch, result: StepResult | None, error: BaseException | None) -> None:
        if self.loop is None:
            result = error = None
        more = True
        try:
            if self._calls is not None:
                more = self._calls.over(batch, result, error)
        except BaseException as e:
            self._break(e)
        if more or self.chores.waiting or self._rested is not None:
            self._free()

    def _chore_back(self, job: Job, nothing: None, error: BaseException | None) -> None:
        if self._calls is not None:
            self._calls.idle()
        if error is not None and not isinstance(error, Exception):
            self._break(error)
        elif self.loop is not None:
            self.chores.over(error)
        self._free()

    def _free(self) -> None:
        if self._rested is not None:
            if not self._rested.done():
                self._rested.set_result(None)
        else:
            self.ring()

    def _break(self, error: BaseException) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)


def _do(job: Job) -> None:
    job()
