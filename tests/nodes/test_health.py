"""What a node tells the service manager: in words, and whether its device gets on."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from helix_mq.clock import VirtualClock
from helix_mq.layers import LayerRange
from nodes.device import DeviceThread
from nodes.health import NodeState, status_text, stuck_text

IDLE = NodeState("tcp://r:7101", True, False, (), None, 0, 0.0)
SERVING = replace(IDLE, serving=(LayerRange(0, 12),), open_requests=3)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (IDLE, "waiting for layers from the router"),
        (replace(IDLE, connected=False), "waiting for the router at tcp://r:7101"),
        (replace(IDLE, loading=LayerRange(12, 18)), "loading layers 12-17"),
        (SERVING, "serving layers 0-11, 3 requests"),
        (
            replace(SERVING, loading=LayerRange(12, 13), open_requests=1),
            "serving layers 0-11, 1 request; loading layer 12",
        ),
        (
            replace(SERVING, serving=(LayerRange(0, 12), LayerRange(3, 5)), connected=False),
            "serving layers 0-11 and layers 3-4, 3 requests; waiting for the router at tcp://r:7101",
        ),
        (
            replace(SERVING, waits_to_leave=True),
            "serving layers 0-11, 3 requests; waiting for the router to let it go",
        ),
    ],
)
def test_in_words(state: NodeState, text: str) -> None:
    assert status_text(state) == text


def test_a_device_that_hangs_is_noticed() -> None:
    clock, go_on, started = VirtualClock(), threading.Event(), threading.Event()
    device = DeviceThread(clock)

    def kernel(value: int) -> int:
        started.set()
        go_on.wait(30)
        return value

    def stuck() -> str:
        return stuck_text(replace(SERVING, device_busy_s=device.busy_s()), 120.0)

    try:
        running = device.submit(kernel, 7)
        behind = device.submit(clock.now_s)
        assert started.wait(30)
        clock.advance(119)
        assert stuck() == ""
        clock.advance(2)
        assert stuck() == "the device has been at one job for more than 120 s"
        go_on.set()
        assert running.result(30) == 7
        assert behind.result(30) == 121
        with pytest.raises(ZeroDivisionError):
            device.submit(lambda: 1 // 0).result(30)
    finally:
        go_on.set()
        device.shutdown(wait=True)
    assert device.busy_s() == 0
    assert stuck() == ""
