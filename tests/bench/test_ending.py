"""A bench that is told to end takes what it has started with it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from bench.ending import TERMINATED, run_to_its_end, told_to_end


def test_sigterm_ends_the_work_in_order() -> None:
    ended = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            ended.append("cluster")

    with pytest.raises(SystemExit) as stopped:
        run_to_its_end(work())
    assert stopped.value.code == TERMINATED
    assert ended == ["cluster"]


def test_sigterm_ends_what_has_no_event_loop_in_order() -> None:
    ended = []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            ended.append("workers")

    with pytest.raises(SystemExit) as stopped, told_to_end():
        work()
    assert stopped.value.code == TERMINATED
    assert ended == ["workers"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_its_answer_and_its_faults_come_out() -> None:
    async def answer() -> int:
        return 7

    async def fault() -> int:
        raise ValueError("x")

    assert run_to_its_end(answer()) == 7
    with pytest.raises(ValueError, match="x"):
        run_to_its_end(fault())
