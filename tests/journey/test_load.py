"""Load the cluster must carry: many streams, cancellations, bursts, too little KV, lost nodes."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import psutil
import pytest

from helix_mq.errors import ContextExceeded, DeadlineExceeded, HelixError, NotServing, QueueFull
from helix_mq.ids import NodeId
from helix_mq.sampling import SamplingParams
from nodes.settings import BatchSection
from router import events as ev
from router.service import Broken, Delta, Finished, Generation
from router.settings import AdmissionSection
from tests.cluster import Cluster, Result, cluster, greedy
from tests.held_steps import held_steps

PLACEMENT = {"a": "0:3", "b": "2:5", "c": "4:6"}
TWO_WAYS = {"a": "0:3", "b": "0:3", "c": "3:6", "d": "2:6"}


def mixed(count: int, seed: int) -> list[Generation]:
    """Prompts of 1 to 120 tokens, outputs of 4 to 40; some greedy, some drawn, some penalised."""
    rng = random.Random(seed)
    requests = []
    for i in range(count):
        prompt = tuple(rng.randrange(256) for _ in range(rng.choice((1, 5, 16, 17, 60, 120))))
        sampling = SamplingParams(
            temperature=rng.choice((0.0, 0.0, 0.8, 1.3)),
            top_p=rng.choice((1.0, 0.9)),
            top_k=rng.choice((0, 20)),
            repetition_penalty=rng.choice((1.0, 1.0, 1.2)),
            frequency_penalty=rng.choice((0.0, 0.5)),
            seed=i,
            max_tokens=rng.randint(4, 40),
            ignore_eos=True,
        )
        requests.append(Generation(prompt, sampling))
    return requests


async def one_by_one(folder: Path, requests: list[Generation]) -> list[Result]:
    """The truth: each request alone on one machine."""
    async with cluster(folder, {"a": "0:6"}) as c:
        return [await c.run(request) for request in requests]


def tokens(results: list[Result]) -> list[tuple[int, ...]]:
    return [r.token_ids for r in results]


@pytest.mark.parametrize("zmq", [False, True], ids=["memory", "zmq"])
async def test_64_streams_at_once_equal_one_by_one(tiny_folder: Path, zmq: bool) -> None:
    requests = mixed(64, seed=1)
    expected = await one_by_one(tiny_folder, requests)
    async with cluster(tiny_folder, TWO_WAYS, zmq=zmq) as c:
        results = await asyncio.gather(*(c.run(request) for request in requests))
    assert tokens(results) == tokens(expected)
    assert [r.text for r in results] == [r.text for r in expected]


async def test_small_steps_and_chunks_change_nothing(tiny_folder: Path) -> None:
    requests = mixed(12, seed=2)
    expected = await one_by_one(tiny_folder, requests)
    batch = BatchSection(prefill_tokens=7, max_rows=3, min_decodes=1, spread=1)
    async with cluster(tiny_folder, PLACEMENT, batch=batch) as c:
        results = await asyncio.gather(*(c.run(request) for request in requests))
    assert tokens(results) == tokens(expected)


async def test_a_tiny_credit_window_slows_but_loses_nothing(tiny_folder: Path) -> None:
    requests = mixed(12, seed=3)
    expected = await one_by_one(tiny_folder, requests)
    # Less than one chunk of 128 tokens x 64 x 4 bytes: every prefill frame is oversize.
    async with cluster(tiny_folder, PLACEMENT, window=8 * 1024) as c:
        results = await asyncio.gather(*(c.run(request) for request in requests))
    assert tokens(results) == tokens(expected)


async def test_too_little_kv_makes_requests_wait_or_move_never_fail(tiny_folder: Path) -> None:
    """Room for about four of twelve sequences at a time, booked too low on purpose."""
    requests = [greedy(tuple(range(1, 20 + i)), 60) for i in range(12)]
    expected = await one_by_one(tiny_folder, requests)
    admission = AdmissionSection(expected_output_tokens=1, kv_high_water=1.0)
    # A page is 16 tokens x 2 x 2 heads x 16 x 4 bytes = 4 KiB; weights of 3 layers 0.4 MiB.
    async with cluster(tiny_folder, PLACEMENT, memory_bytes=760 * 1024, admission=admission) as c:
        pages = [d.worker.statistics().kv_total_pages for d in c.daemons.values() if d.worker]
        assert min(pages) < 80, pages
        results = await asyncio.gather(*(c.run(request) for request in requests))
    assert tokens(results) == tokens(expected)
    assert sum(r.finish.reroutes for r in results) > 0


async def test_cancelling_half_in_mid_stream_leaves_nothing_behind(tiny_folder: Path) -> None:
    requests = [greedy(tuple(range(1, 2 + i)), 100) for i in range(64)]
    tasks_before = len(asyncio.all_tasks())
    async with cluster(tiny_folder, TWO_WAYS, zmq=True) as c:

        async def cancel_after(request: Generation, deltas: int) -> Finished:
            stream = c.app.submit(request)
            seen = 0
            async for event in stream:
                if isinstance(event, Delta):
                    seen += 1
                    if seen == deltas:
                        c.app.cancel(stream.request)
                elif isinstance(event, Finished):
                    return event
            raise AssertionError("no end")

        whole = asyncio.gather(*(c.run(r) for r in requests[::2]))
        halves = asyncio.gather(*(cancel_after(r, 1 + i % 9) for i, r in enumerate(requests[1::2])))
        results, cancelled = await whole, await halves
        await c.quiet()
        assert c.app.status().running == c.app.status().queued == 0
    assert all(len(r.token_ids) == 100 for r in results)
    assert {f.finish_reason for f in cancelled} == {"cancelled"}
    assert len(asyncio.all_tasks()) == tasks_before


async def test_a_burst_of_1000_ends_in_results_or_refusals_with_memory_flat(
    tiny_folder: Path,
) -> None:
    admission = AdmissionSection(max_waiting=100)
    process = psutil.Process(os.getpid())

    async def attempt(c: Cluster, i: int) -> str:
        try:
            result = await c.run(greedy((1 + i % 200,), 4))
        except QueueFull as e:
            assert e.retry_after_s is not None
            assert e.retry_after_s >= 1
            assert e.http_status == 503
            return "refused"
        assert len(result.token_ids) == 4
        return "served"

    async with cluster(
        tiny_folder, TWO_WAYS, zmq=True, admission=admission, memory_bytes=2_000 * 1024
    ) as c:
        for _ in range(3):
            # Allocators and caches fill up in the first bursts; from then on nothing may grow.
            await asyncio.gather(*(attempt(c, i) for i in range(1000)))
        before = process.memory_info().rss
        outcomes = await asyncio.gather(*(attempt(c, i) for i in range(1000)))
        grown = process.memory_info().rss - before
    assert set(outcomes) == {"served", "refused"}
    assert outcomes.count("served") >= 100
    assert grown < 32 << 20, f"{grown} bytes more after the last burst"


@pytest.mark.parametrize("victim", ["a", "b", "c", "d"])
async def test_losing_a_node_in_mid_stream_loses_no_token(tiny_folder: Path, victim: str) -> None:
    requests = mixed(16, seed=4)
    expected = await one_by_one(tiny_folder, requests)
    async with cluster(tiny_folder, TWO_WAYS, zmq=True, dead_after_s=0.6) as c:
        running = asyncio.gather(*(c.run(request) for request in requests))
        await c.until(lambda: c.app.status().running > 4, "requests are running")
        await c.kill(victim)
        results = await running
    assert tokens(results) == tokens(expected)


async def test_losing_the_only_holder_waits_for_it_to_come_back(tiny_folder: Path) -> None:
    requests = mixed(8, seed=5)
    expected = await one_by_one(tiny_folder, requests)
    async with cluster(tiny_folder, PLACEMENT, zmq=True, dead_after_s=0.6) as c:
        running = asyncio.gather(*(c.run(request) for request in requests))
        await c.until(lambda: c.app.status().running > 4, "requests are running")
        await c.kill("b")
        await c.until(lambda: not c.app.status().serving, "the loss is noticed")
        # Its links break first, and are named until it counts as dead itself.
        missing = "layer 3 is on no live node"
        await c.until(lambda: missing in c.app.status().reason, "the layer is named")
        await c.add_node("b")
        results = await running
    assert tokens(results) == tokens(expected)


async def test_what_cannot_be_served_is_refused_in_words(tiny_folder: Path) -> None:
    admission = AdmissionSection(default_deadline_s=600)
    async with cluster(tiny_folder, PLACEMENT, admission=admission) as c:
        with pytest.raises(ContextExceeded, match="512"):
            c.app.submit(greedy(tuple([1] * 500), 13))
        with pytest.raises(ContextExceeded, match="empty"):
            c.app.submit(greedy((), 13))
        with held_steps(c), pytest.raises(DeadlineExceeded):
            await c.run(greedy((1, 2), 400, deadline_s=0.05))


async def test_before_the_nodes_are_there_requests_are_refused_with_the_missing_layers(
    tiny_folder: Path,
) -> None:
    async with cluster(tiny_folder, PLACEMENT, wait=False) as c:
        await c.kill("c")
        await c.until(lambda: "layer 5" in c.app.status().reason, "a and b are ready")
        with pytest.raises(NotServing, match="layer 5 is on no live node; waiting for node c"):
            c.app.submit(greedy((1,), 4))


async def test_a_deadline_passes_in_the_queue(tiny_folder: Path) -> None:
    admission = AdmissionSection(expected_output_tokens=400)
    async with cluster(
        tiny_folder, {"a": "0:6"}, memory_bytes=2_000 * 1024, admission=admission
    ) as c:
        with held_steps(c):
            first = asyncio.create_task(c.run(greedy((1,), 400)))
            await c.until(lambda: c.app.status().running == 1, "one runs")
            stream = c.app.submit(greedy((2,), 400, deadline_s=0.3))
            events = [event async for event in stream]
        assert isinstance(events[-1], Broken)
        assert isinstance(events[-1].error, DeadlineExceeded), events[-1].error
        assert len((await first).token_ids) == 400


async def test_a_process_that_takes_another_name_is_told(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, {"a": "0:6"}, zmq=True) as c:
        old = c.tasks.pop("a")
        c.daemons.pop("a")
        await c.add_node("a")
        with pytest.raises(HelixError, match="another process has registered as a"):
            await asyncio.wait_for(old, 240)
        await c.ready()
        assert len((await c.run(greedy((1,), 5))).token_ids) == 5
        assert c.app.core.cluster.membership.get(NodeId("a")) is not None


async def test_a_node_that_was_only_silent_comes_back_without_loading_again(
    tiny_folder: Path,
) -> None:
    requests = mixed(8, seed=6)
    expected = await one_by_one(tiny_folder, requests)
    async with cluster(tiny_folder, PLACEMENT, zmq=True, dead_after_s=0.6) as c:
        loaded = c.daemons["b"].loaded
        running = asyncio.gather(*(c.run(request) for request in requests))
        await c.until(lambda: c.app.status().running > 4, "requests are running")
        member = c.app.core.cluster.membership.get("b")
        assert member is not None
        gone = ev.NodeGone(NodeId("b"), member.register.incarnation, "not heard from")
        c.app.apply(gone)
        assert not c.app.status().serving
        results = await running
        assert c.daemons["b"].loaded is loaded
    assert tokens(results) == tokens(expected)
