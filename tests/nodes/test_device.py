"""The way of a job to the device thread and back."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar, cast

import pytest

from helix_mq.clock import SystemClock
from nodes.device import DeviceThread, Errand

WAIT_S = 240.0
T = TypeVar("T")


@pytest.fixture
def device() -> Iterator[DeviceThread]:
    with DeviceThread(SystemClock()) as device:
        yield device


async def run(device: DeviceThread, job: Callable[[], T]) -> T:
    """As who has it done on a loop."""
    ended = asyncio.Event()
    values: list[T | None] = []
    errors: list[BaseException] = []

    def back(given: None, value: T | None, error: BaseException | None) -> None:
        values.append(value)
        if error is not None:
            errors.append(error)
        ended.set()

    Errand[None, T](device, back).go(lambda _: job(), None, asyncio.get_running_loop())
    await ended.wait()
    if errors:
        raise errors.pop()
    return cast(T, values[0])


async def test_jobs_run_elsewhere_one_after_another(device: DeviceThread) -> None:
    seen: list[int] = []

    def job(number: int) -> tuple[int, threading.Thread]:
        seen.append(number)
        return number, threading.current_thread()

    found = await asyncio.gather(*(run(device, partial(job, n)) for n in range(20)))
    assert [number for number, _ in found] == seen == list(range(20))
    assert {thread for _, thread in found} != {threading.current_thread()}
    assert len({thread for _, thread in found}) == 1


async def test_what_a_job_raises_is_raised_here_and_kept_by_nobody(device: DeviceThread) -> None:
    class Held:
        pass

    held = Held()
    kept = weakref.ref(held)

    def job(held: object) -> None:
        raise ZeroDivisionError("of the job")

    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError, match="of the job"):
            await run(device, lambda held=held: job(held))  # type: ignore[misc]
        assert await run(device, lambda: 7) == 7
        del held
        # Tensors of a step that failed must not wait for the collector of cycles.
        assert kept() is None
    finally:
        gc.enable()


def test_a_loop_that_is_gone_is_not_the_jobs_fault(device: DeviceThread) -> None:
    go_on = threading.Event()

    async def leave() -> None:
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().stop)
        await run(device, lambda: go_on.wait(WAIT_S))

    loop = asyncio.new_event_loop()
    task = loop.create_task(leave())
    loop.run_forever()
    # Closed without a look at what still runs, as when a process is ended.
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    go_on.set()
    assert device.submit(lambda: 7).result(WAIT_S) == 7


def test_shutting_down_drops_what_waits_if_told_to() -> None:
    device, started, go_on = DeviceThread(SystemClock()), threading.Event(), threading.Event()

    def job() -> int:
        started.set()
        assert go_on.wait(WAIT_S)
        return 7

    running, behind = device.submit(job), device.submit(lambda: 8)
    assert started.wait(WAIT_S)
    device.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="has ended"):
        device.submit(lambda: 9)
    go_on.set()
    device.shutdown(wait=True)
    assert running.result(0) == 7
    assert behind.cancelled()


def test_one_that_had_nothing_to_do_has_no_thread() -> None:
    before = threading.active_count()
    device = DeviceThread(SystemClock())
    assert threading.active_count() == before
    device.shutdown(wait=True)
    with pytest.raises(RuntimeError, match="has ended"):
        device.submit(lambda: 9)
