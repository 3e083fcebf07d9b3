"""Plain steps that compiled threads compute by themselves: which, and when none are begun."""

from __future__ import annotations

import select
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nodes import plain_steps
from nodes.model.native import build, crew
from nodes.model.native.products import products_for
from tests.nodes.model.native.plain_twins import WAIT_S, Checkpoint, Twins, ran

pytestmark = pytest.mark.skipif(
    products_for(torch.float32) is None or products_for(torch.bfloat16) is None,
    reason=f"no compiled products: {build.built().reason}",
)


def test_a_token_that_there_is_not_is_left_to_who_says_so(checkpoint: Checkpoint) -> None:
    twins = Twins(checkpoint("mistral").folder, "first", torch.float32)
    twins.run([twins.work(0, 0, 5)])
    engine = twins.engines[2]
    for number in (-1, 151):
        work = twins.work(0, 5, data=number.to_bytes(4, sys.byteorder, signed=True))
        bell = engine.begin([work])
        assert bell is not None
        assert select.select([bell], [], [], WAIT_S)[0]
        assert engine.end() is None


def test_small_slices_stay_with_the_device_thread(checkpoint: Checkpoint) -> None:
    twins = Twins(checkpoint("mistral").folder, "whole", torch.float32)
    twins.run([twins.work(0, 0, 5)])
    work = [twins.work(0, 5)]
    assert twins.engines[0].begin(work) is None
    assert twins.engines[2].begin(work) is not None


def test_where_there_are_no_such_threads_nothing_is_begun(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = Twins(checkpoint("mistral").folder, "whole", torch.float32)
    twins.run([twins.work(0, 0, 5)])
    monkeypatch.setattr(crew, "_calls", lambda: None)
    twins.run([twins.work(0, 5)])
    twins.run([twins.work(0, 6)])
    assert twins.begun == [False] * 3


def test_the_first_step_says_how_many_threads_there_are(checkpoint: Checkpoint) -> None:
    """What the event loop's thread has for its own says nothing."""
    twins = Twins(checkpoint("mistral").folder, "whole", torch.float32)
    engine, prompt = twins.engines[0], [twins.work(0, 0, 5)]
    assert engine._plain is not None
    engine._plain._no_crew = False
    ran(engine, prompt)
    assert engine._plain._threads == torch.get_num_threads()
    engine._plain._threads = 0
    assert engine.begin([twins.work(0, 5)]) is None
    with ThreadPoolExecutor(1) as device:
        device.submit(torch.set_num_threads, 3).result()
        assert device.submit(engine.run, [twins.work(0, 5)]).result().tokens
        # Threads that come later start with what was set last.
        device.submit(torch.set_num_threads, torch.get_num_threads()).result()
    bell = engine.begin([twins.work(0, 6)])
    assert bell is not None
    assert engine._plain._crew is not None
    assert engine._plain._crew.threads == 3
    assert select.select([bell], [], [], WAIT_S)[0]
    assert engine.end() is not None


def test_many_rows_are_not_made_ready_on_the_loop(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_steps, "MOST_OWN_ROWS", 2)
    twins = Twins(checkpoint("mistral").folder, "whole", torch.float32)
    twins.run([twins.work(n, 0, 5) for n in range(3)])
    twins.run([twins.work(n, 5) for n in range(3)])
    twins.run([twins.work(n, 6) for n in range(2)])
    assert twins.begun == [False, False, True]
