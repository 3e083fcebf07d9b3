"""Threads that answer have a short slice of a processor, threads that compute the system's own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from helix_mq.time_slices import SHORT_S, slice_s

pytestmark = pytest.mark.skipif(slice_s() is None, reason="this kernel gives threads no slices")

_PROCESS = """
import asyncio, json, threading
from pathlib import Path
from helix_mq.clock import SystemClock
from helix_mq.process import run
from helix_mq.time_slices import slice_s
from helix_mq.transport import ZmqTransport
from nodes.device import DeviceThread
from nodes.model.native.crew import Crew, NoCrew
from router.apart import Apart

before = slice_s()

def threads():
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}

async def main(stop):
    others = threads()
    transport = ZmqTransport()
    listener = await transport.listen("tcp://127.0.0.1:0", print)
    zmq = {thread: slice_s(thread) for thread in threads() - others}
    device = DeviceThread(SystemClock())
    found = {
        "before": before,
        "loop": slice_s(),
        "zmq": sorted(zmq.values()),
        "device": await asyncio.wrap_future(device.submit(slice_s)),
        "executor": await asyncio.to_thread(slice_s),
    }
    device.shutdown()
    others = threads()
    try:
        crew = Crew(2)
        # Who started them, as a thread that computes, may still be there, too.
        found["crew"] = [s for s in map(slice_s, threads() - others) if s is not None]
        crew.close()
    except NoCrew:
        found["crew"] = [before, before]
    apart = Apart("what a search has")
    found["search"] = await apart.run(slice_s, 0, 60.0)
    apart.close()
    await listener.close()
    await transport.close()
    print(json.dumps(found), flush=True)

run(main)
"""


def _said(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=120, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def test_a_process_answers_soon_and_computes_long() -> None:
    found = json.loads(_said(_PROCESS))
    assert found["loop"] == SHORT_S < found["before"]
    assert found["zmq"]
    assert set(found["zmq"]) == {SHORT_S}
    assert len(found["crew"]) >= 2
    assert set(found["crew"]) == {found["before"]}
    assert found["device"] == found["executor"] == found["search"] == found["before"]


def test_what_somebody_has_chosen_for_a_process_stays() -> None:
    said = _said(
        "import os\n"
        "from helix_mq.time_slices import answer_soon, compute_long\n"
        "os.nice(3)\n"
        "print(answer_soon(), os.nice(0), compute_long(), os.nice(0))\n"
        "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
        "print(answer_soon(), os.sched_getscheduler(0) == os.SCHED_IDLE)\n"
    )
    assert said.split() == ["True", "3", "True", "3", "False", "True"]


def test_a_system_without_slices_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from helix_mq import time_slices

    monkeypatch.setattr(time_slices.platform, "machine", lambda: "unheard-of")
    before = slice_s()
    assert before is None
    assert not time_slices.answer_soon()
    assert not time_slices.compute_long()
