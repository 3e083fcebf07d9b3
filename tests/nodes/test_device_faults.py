"""Steps that fail beside devices that are gone."""

from __future__ import annotations

import asyncio

import pytest
import torch

from helix_mq.clock import SystemClock
from helix_mq.errors import DeviceLost
from nodes.batching import BatchLimits
from nodes.device import DeviceThread
from nodes.device_faults import raise_if_lost
from tests.nodes.worker_bench import WAIT_S, Bench, prompt

GPU = torch.device("cuda:1")


def test_a_device_that_still_answers_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    raise_if_lost(GPU, RuntimeError("shapes do not fit"))
    assert asked == [GPU]


def test_one_that_answers_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", refuses)
    with pytest.raises(DeviceLost, match=r"^cuda:1 works no more .* illegal memory access") as e:
        raise_if_lost(GPU, RuntimeError("CUDA error"))
    assert "more\n" not in e.value.message
    raise_if_lost(GPU, torch.OutOfMemoryError("full"))
    raise_if_lost(torch.device("cpu"), RuntimeError("shapes do not fit"))


async def test_a_node_whose_device_is_lost_refuses_its_rows_and_ends() -> None:
    with DeviceThread(SystemClock()) as device:
        b = Bench(device, 100, BatchLimits())
        b.engine.faults.append(DeviceLost("cuda:0 works no more"))
        running = asyncio.create_task(b.worker.run())
        b.frame(prompt(1), prompt(2))
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(DeviceLost):
                await running
        assert b.refused == [(1, "device_lost"), (2, "device_lost")]
        assert b.credited == b.frames
