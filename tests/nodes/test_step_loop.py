"""The step loop on a real device thread."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any, cast

import pytest

from helix_mq.clock import SystemClock
from nodes.device import DeviceThread
from nodes.step_loop import StepCalls, StepLoop
from nodes.steps import StepEngine


def calls(**change: Any) -> StepCalls:
    """Of a worker that has nothing to do."""
    of: dict[str, Any] = {
        "engine": cast(StepEngine, None),
        "choose": list,
        "over": lambda *_: False,
        "idle": lambda: None,
        "stall_s": lambda: None,
        "stalled": lambda: None,
    }
    return StepCalls(**of | change)


async def test_a_device_that_takes_nothing_any_more_ends_the_loop_and_is_not_waited_for() -> None:
    device = DeviceThread(SystemClock())
    device.shutdown()
    loop = StepLoop(device)
    waits = loop.chores.add(lambda: None)
    async with asyncio.timeout(240):
        with pytest.raises(RuntimeError, match="has ended"):
            await loop.run(calls())
    assert waits.cancelled()


async def test_who_is_cancelled_waits_for_the_job_in_progress_and_does_no_other() -> None:
    device = DeviceThread(SystemClock())
    loop, turn = StepLoop(device), asyncio.get_running_loop()
    begun, ended = asyncio.Event(), asyncio.Event()
    done: list[str] = []
    go = asyncio.Event()

    def job() -> None:
        turn.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go.wait(), turn).result(240)
        done.append("first")

    first = loop.chores.add(job)
    second = loop.chores.add(lambda: done.append("second"))
    running = asyncio.create_task(loop.run(calls(idle=ended.set)))
    async with asyncio.timeout(240):
        await begun.wait()
        running.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not running.done(), "what the job works on must stay as it is"
        go.set()
        await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert done == ["first"]
    assert first.cancelled()
    assert second.cancelled()
    device.shutdown()


async def test_a_stall_is_told_unless_a_step_begins_before() -> None:
    device = DeviceThread(SystemClock())
    loop, told = StepLoop(device), asyncio.Event()
    running = asyncio.create_task(loop.run(calls(stall_s=lambda: 0.01, stalled=told.set)))
    async with asyncio.timeout(240):
        await told.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    device.shutdown()


class ByItself:
    """An engine whose steps end when a test rings their bell. `begins`, `agains`, `ends`: what
    these come to; an exception is raised."""

    def __init__(self) -> None:
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.begins: Any = self.bell
        self.ends: Any = "result"
        self.agains: Any = self.bell
        self.calls: list[str] = []
        self.began = asyncio.Event()
        self.threads: list[threading.Thread] = []

    def begin(self, batch: Any) -> Any:
        self.calls.append(f"begin {batch}")
        self.began.set()
        return _or_raise(self.begins)

    def again(self, batch: Any, payload: Any) -> Any:
        self.calls.append(f"again {batch} {payload}")
        return _or_raise(self.agains)

    def ring(self) -> None:
        os.eventfd_write(self.bell, 1)

    def end(self) -> Any:
        self.calls.append("end")
        os.eventfd_read(self.bell)
        return _or_raise(self.ends)

    def run(self, batch: Any) -> Any:
        self.calls.append(f"run {batch}")
        self.threads.append(threading.current_thread())
        return "run"


def _or_raise(what: Any) -> Any:
    if isinstance(what, BaseException):
        raise what
    return what


def _claimed(device: DeviceThread, *, by_somebody: bool = True) -> None:
    """Returns when a job has come to it, whether it waits or not; or when there is none."""
    until_s = time.monotonic() + 240
    while (device.since_s is not None) is not by_somebody:
        assert time.monotonic() < until_s
        os.sched_yield()


class Steps:
    """A loop over an engine that computes by itself, and what came back: one batch at a time."""

    def __init__(self, engine: ByItself, device: DeviceThread) -> None:
        self.engine, self.device = engine, device
        self.loop = StepLoop(device)
        self.batches: list[Any] = []
        self.over: list[tuple[Any, Any, Any]] = []
        self._came = asyncio.Event()
        self.running = asyncio.create_task(
            self.loop.run(
                calls(engine=engine, choose=self._choose, over=self._over, idle=self._idle)
            )
        )

    def _choose(self) -> Any:
        return self.batches.pop(0) if self.batches else []

    def _idle(self) -> None:
        self.loop.busy = False

    def _over(self, batch: Any, result: Any, error: Any) -> bool:
        self.loop.busy = False
        self.over.append((batch, result, error))
        self._came.set()
        return bool(self.batches)

    async def step(self, batch: Any) -> None:
        self.engine.began.clear()
        self.batches.append(batch)
        self.loop.ring()
        await self.engine.began.wait()

    async def came(self) -> tuple[Any, Any, Any]:
        while not self.over:
            self._came.clear()
            await self._came.wait()
        return self.over.pop(0)


@pytest.fixture
async def steps() -> Any:
    device, engine = DeviceThread(SystemClock()), ByItself()
    found = Steps(engine, device)
    async with asyncio.timeout(240):
        yield found
        found.running.cancel()
        engine.ring()
        await asyncio.gather(found.running, return_exceptions=True)
    assert device.busy_s() == 0
    device.shutdown()
    os.close(engine.bell)


async def test_what_the_engine_computes_by_itself_needs_no_thread_here(steps: Steps) -> None:
    for number in range(3):
        await steps.step([number])
        assert steps.loop.busy
        assert steps.device.busy_s() > 0, "the watchdog sees it"
        steps.engine.ring()
        assert await steps.came() == ([number], "result", None)
        assert not steps.loop.busy
        assert steps.device.busy_s() == 0
    assert steps.engine.calls == [
        f"begin [{n}]" if not e else "end" for n in range(3) for e in (0, 1)
    ]
    assert steps.device.submit(lambda: 7).result(240) == 7


@pytest.mark.parametrize("begins", [None, ZeroDivisionError("of begin")])
async def test_what_it_does_not_begin_the_device_runs(steps: Steps, begins: Any) -> None:
    steps.engine.begins = begins
    await steps.step([1])
    assert await steps.came() == ([1], "run", None)
    assert steps.engine.calls == ["begin [1]", "run [1]"]
    assert steps.engine.threads != [threading.current_thread()]


async def test_what_it_comes_to_no_result_with_the_device_runs_again(steps: Steps) -> None:
    steps.engine.ends = None
    await steps.step([1])
    steps.engine.ring()
    assert await steps.came() == ([1], "run", None)
    assert steps.engine.calls == ["begin [1]", "end", "run [1]"]


async def test_what_its_end_raises_is_told(steps: Steps) -> None:
    steps.engine.ends = fault = ZeroDivisionError("of end")
    await steps.step([1])
    steps.engine.ring()
    assert await steps.came() == ([1], None, fault)


async def test_beside_a_job_of_another_slice_it_waits_for_the_device(steps: Steps) -> None:
    started, go_on = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        assert go_on.wait(240)

    other = steps.device.submit(job)
    assert await asyncio.to_thread(started.wait, 240)
    steps.batches.append([1])
    steps.loop.ring()
    for _ in range(10):
        await asyncio.sleep(0)
    assert steps.engine.calls == []
    go_on.set()
    assert await steps.came() == ([1], "run", None)
    assert other.done()


async def test_a_job_of_another_slice_waits_for_what_computes_by_itself(steps: Steps) -> None:
    """And what comes then waits for that job, or there would be no end of it."""
    for number in range(0, 20, 2):
        await steps.step([number])
        go_on = threading.Event()

        def job(go_on: threading.Event = go_on) -> list[str]:
            seen = list(steps.engine.calls)
            assert go_on.wait(240)
            return seen

        other = steps.device.submit(job)
        steps.batches.append([number + 1])
        await asyncio.to_thread(_claimed, steps.device)
        assert not other.done()
        steps.engine.ring()
        assert await steps.came() == ([number], "result", None)
        go_on.set()
        assert await steps.came() == ([number + 1], "run", None)
        assert other.result(0) == [f"begin [{number}]", "end"]
        steps.engine.calls.clear()


async def test_who_is_cancelled_waits_for_what_computes_by_itself(steps: Steps) -> None:
    await steps.step([1])
    steps.running.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not steps.running.done(), "what it reads and writes must stay as it is"
    steps.engine.ring()
    with pytest.raises(asyncio.CancelledError):
        await steps.running
    assert await steps.came() == ([1], None, None), "nobody is to hear of it"
    # Nobody listens any more.
    steps.engine.ring()
    for _ in range(10):
        await asyncio.sleep(0)
    assert steps.engine.calls == ["begin [1]", "end"]


async def test_what_is_rung_for_now_begins_in_the_same_turn(steps: Steps) -> None:
    steps.batches.append([1])
    await asyncio.sleep(0)
    steps.loop.now()
    assert steps.engine.calls == ["begin [1]"]
    steps.batches.append([2])
    steps.loop.now()
    assert steps.engine.calls == ["begin [1]"], "one at a time"
    steps.engine.ring()
    assert await steps.came() == ([1], "result", None)
    await steps.engine.began.wait()
    steps.engine.ring()
    assert await steps.came() == ([2], "result", None)


def _again(steps: Steps, number: int) -> bool:
    return steps.loop.again(cast(Any, [number]), memoryview(b"ids"))


async def test_a_step_may_go_on_from_the_last_one(steps: Steps) -> None:
    await steps.step([0])
    assert not _again(steps, 1), "the step before is under way"
    steps.engine.ring()
    assert await steps.came() == ([0], "result", None)
    steps.engine.calls.clear()
    for number in (1, 2):
        assert _again(steps, number)
        assert steps.loop.busy
        assert steps.device.busy_s() > 0
        steps.engine.ring()
        assert await steps.came() == ([number], "result", None)
    assert [call.split()[0] for call in steps.engine.calls] == ["again", "end"] * 2


@pytest.mark.parametrize("agains", [None, ZeroDivisionError("of again")])
async def test_what_cannot_go_on_is_left_to_begin(steps: Steps, agains: Any) -> None:
    await steps.step([0])
    steps.engine.ring()
    assert await steps.came() == ([0], "result", None)
    steps.engine.agains = agains
    assert not _again(steps, 1)
    assert not steps.loop.busy
    assert steps.device.busy_s() == 0
    await steps.step([1])
    steps.engine.ring()
    assert await steps.came() == ([1], "result", None)


async def test_beside_another_slice_nothing_goes_on_at_once(steps: Steps) -> None:
    await steps.step([0])
    steps.engine.ring()
    assert await steps.came() == ([0], "result", None)
    steps.loop.busy = True
    assert not _again(steps, 1), "a job is on its way to the device"
    steps.loop.busy = False
    steps.device.elsewhere_since_s = 1.0
    assert not _again(steps, 1)
    steps.device.rested()
    go_on = threading.Event()
    other = steps.device.submit(go_on.wait)
    await asyncio.to_thread(_claimed, steps.device)
    assert not _again(steps, 1)
    go_on.set()
    assert await asyncio.wrap_future(other)
    await asyncio.to_thread(_claimed, steps.device, by_somebody=False)
    waits = steps.loop.chores.add(lambda: None)
    assert not _again(steps, 1)
    steps.loop.ring()
    await waits
    assert [call.split()[0] for call in steps.engine.calls] == ["begin", "end"]
    assert _again(steps, 1)
    steps.engine.ring()
    assert await steps.came() == ([1], "result", None)


async def test_a_step_that_goes_on_ends_the_wait_of_one_that_stalled() -> None:
    device, engine = DeviceThread(SystemClock()), ByItself()
    loop, told = StepLoop(device), asyncio.Event()
    asked = asyncio.Event()

    def stall_s() -> float:
        asked.set()
        return 3600.0

    of = calls(engine=engine, stall_s=stall_s, stalled=told.set)
    running = asyncio.create_task(loop.run(of))
    async with asyncio.timeout(240):
        await asked.wait()
        assert loop._stall is not None
        assert loop.again(cast(Any, [1]), memoryview(b""))
        assert loop._stall is None
        running.cancel()
        await asyncio.sleep(0)
        loop.busy = False
        engine.ring()
        await asyncio.gather(running, return_exceptions=True)
        assert not loop.again(cast(Any, [2]), memoryview(b"")), "nobody runs it any more"
    device.shutdown()
    os.close(engine.bell)
