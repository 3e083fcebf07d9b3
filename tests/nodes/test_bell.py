from __future__ import annotations

import asyncio

import pytest

from nodes.bell import Bell


async def test_a_ring_wakes_who_waits_and_is_kept_for_who_comes_later() -> None:
    bell = Bell()
    bell.ring()
    await bell.wait()
    bell.listen()
    waiting = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    bell.ring()
    bell.ring()
    await waiting
    # Kept until the next `listen`.
    await bell.wait()


async def test_who_was_cancelled_waits_no_more() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    bell.ring()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    bell.listen()
    another = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    bell.ring()
    await another
