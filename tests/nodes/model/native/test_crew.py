"""Threads that compute a step by themselves: the same bits, whoever comes when, and a clean end."""

from __future__ import annotations

import gc
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helix_mq.ids import Attempt, RequestId
from helix_mq.layers import LayerRange
from nodes.batching import SeqKey
from nodes.model.native import build, crew
from nodes.model.native.crew import Crew, NoCrew
from nodes.model.native.decodes import NativeDecodes
from nodes.model.native.ready import Given
from nodes.model.slice import ModelSlice

WAIT_S = 240.0
CPU = torch.device("cpu")
LAYERS = LayerRange(0, 4)
ROWS = 6

pytestmark = pytest.mark.skipif(
    crew._calls() is None, reason=f"no compiled threads: {build.built().reason}"
)


def threads_here() -> set[str]:
    return {task.name for task in Path("/proc/self/task").iterdir()}


def until_new(before: set[str], count: int) -> bool:
    """Waits until there are so many threads more: one that was joined may be seen for a moment."""
    deadline_s = time.monotonic() + WAIT_S
    while len(threads_here() - before) != count:
        if time.monotonic() > deadline_s:
            return False
        os.sched_yield()
    return True


@pytest.fixture
def decodes(checkpoint: Callable[[str], Any]) -> tuple[NativeDecodes, ModelSlice, Any]:
    """Of a slice with as many open sequences as ROWS, each with room for 60 tokens."""
    model = ModelSlice.load(checkpoint("mistral").folder, LAYERS, device=CPU, dtype=torch.bfloat16)
    cache = model.new_cache(ROWS * len(LAYERS) * 60)
    found = model.decodes(cache)
    if found is None:
        pytest.skip("no compiled step of 16 bits here")
    for number in range(ROWS):
        cache.pool.open(key(number), LAYERS)
        cache.pool.ensure(key(number), 60)
    # Small as they are, their products are shared, too.
    found.worth_threads = True
    return found, model, cache


def key(number: int) -> SeqKey:
    return SeqKey(RequestId(number), Attempt(0))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_steps_are_computed_as_by_one_thread(
    decodes: tuple[NativeDecodes, ModelSlice, Any], threads: int
) -> None:
    """Also where there are more threads than processors, and some of them come late or never."""
    native, _, cache = decodes
    draw, places = random.Random(threads), [0] * ROWS
    own = Crew(threads)
    for _ in range(150):
        rows = draw.sample(range(ROWS), draw.randint(1, ROWS))
        at = [(key(n), places[n] % 50) for n in rows]
        given = Given([draw.randrange(151) for _ in rows])
        found: list[tuple[list[int], list[float]]] = []
        for begin in (False, True):
            step = native.tokens(at, LAYERS, cache, given)
            assert step is not None
            if begin:
                native.begin(step, own)
                assert select.select([own.bell], [], [], WAIT_S)[0]
                bad, began_s, ended_s = own.took()
                assert bad == 0
                assert 0 < began_s <= ended_s
            else:
                assert native.now(step)
            assert step.best is not None
            assert step.highest is not None
            found.append((step.best[:], step.highest[:]))
        assert found[0] == found[1]
        for n in rows:
            places[n] += 1
    own.close()


def test_nothing_is_left_of_one_that_is_closed_or_forgotten() -> None:
    before, bells = threads_here(), []
    one, other = Crew(3), Crew(2)
    bells = [one.bell, other.bell]
    assert until_new(before, 5)
    one.close()
    one.close()
    assert until_new(before, 2)
    del other
    gc.collect()
    assert until_new(before, 0)
    for bell in bells:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(bell)


def test_who_closes_it_waits_for_its_job(decodes: tuple[NativeDecodes, ModelSlice, Any]) -> None:
    """What a job writes to may be gone afterwards."""
    native, _, cache = decodes
    for number in range(40):
        own = Crew(2)
        step = native.tokens([(key(0), number)], LAYERS, cache, Given([number]))
        assert step is not None
        assert step.highest is not None
        step.highest[0] = float("nan")
        native.begin(step, own)
        own.close()
        # Begun or not, nothing is at it any more.
        seen = step.highest[:]
        assert native.now(step)
        assert seen[0] != seen[0] or seen == step.highest[:]


def test_where_the_system_has_none_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_calls", lambda: None)
    with pytest.raises(NoCrew, match="need Linux"):
        Crew(2)


def test_more_threads_than_the_system_starts() -> None:
    """And none of those that were started is left. In a process of its own, since stacks take
    addresses, of which it is given few."""
    done = subprocess.run([sys.executable, "-c", _FEW_ADDRESSES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the system starts no 4000 threads more\nTrue True\n"


_FEW_ADDRESSES = """
import os, resource, time
from nodes.model.native.crew import Crew, NoCrew

def here():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

Crew(2).close()
before = here()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), -1))
try:
    Crew(4000)
except NoCrew as e:
    print(e)
deadline_s = time.monotonic() + 240
# One that was joined may be listed for a moment.
while any(a > b for a, b in zip(here(), before)) and time.monotonic() < deadline_s:
    os.sched_yield()
print(*(a <= b for a, b in zip(here(), before)))
"""
