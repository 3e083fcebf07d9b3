"""The step loop on a real device thread."""

from __future__ import annotations

import asyncio
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
