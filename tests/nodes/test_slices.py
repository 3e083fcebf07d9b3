"""Orders from a router to a real node: slices side by side, freed, grown, given up, refused."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from helix_mq.layers import LayerRange
from helix_mq.messages import control
from nodes.daemon import NodeDaemon
from nodes.loader import Loader
from nodes.loading import Loaded, LoadRequest
from nodes.model.weights import SafetensorsReader
from tests.nodes.slices_bench import LAYERS, WAIT_S, WHOLE, FakeRouter, node_and_router

TOKENS = 40


async def alone(folder: Path, *requests: int, tokens: int = TOKENS) -> list[list[int]]:
    """What an undisturbed node says to these requests."""
    async with node_and_router(folder) as (_, router):
        router.assign(1)
        await router.ready(1)
        for request in requests:
            router.prompt(request, 1, tokens)
        return [await router.finished(request) for request in requests]


def tensors(loaded: Loaded) -> list[weakref.ref[torch.Tensor]]:
    """Weights and KV pool."""
    cache = loaded.engine._cache
    norm = loaded.engine._model._weights.layers[0].attention_norm
    return [weakref.ref(cache.keys), weakref.ref(cache.values), weakref.ref(norm)]


async def test_two_slices_serve_their_own_epochs_and_the_dropped_one_is_freed(
    tiny_folder: Path,
) -> None:
    right = await alone(tiny_folder, 1)
    async with node_and_router(tiny_folder) as (node, router):
        router.assign(1, (0, 3))
        first = await router.ready(1)
        assert node.loaded is not None
        old = tensors(node.loaded)
        router.assign(2)
        second = await router.ready(2)
        assert len(node.workers) == 2
        router.prompt(1, 2, TOKENS)
        assert [await router.finished(1)] == right
        assert router.token_epochs[1] == {2}
        router.prompt(2, 1, 1)
        await router.until(lambda: (2, "not_held") in router.refused)
        loaded = node.loaded
        assert loaded.held_bytes == second.held_bytes
        assert second.held_bytes > first.held_bytes
        gc.disable()
        try:
            router.retain(2)
            await router.until(lambda: len(node.workers) == 1)
            await router.until(lambda: all(ref() is None for ref in old))
        finally:
            gc.enable()
        router.prompt(3, 1, 1)
        await router.until(lambda: (3, "stale_epoch") in router.refused)
        beats = router.of(control.Heartbeat)
        assert isinstance(beats[-1], control.Heartbeat)
        steps = beats[-1].steps
        heard = len(beats)
        await router.until(lambda: len(router.of(control.Heartbeat)) > heard)
        last = router.of(control.Heartbeat)[-1]
        assert isinstance(last, control.Heartbeat)
        assert last.epoch == 2
        assert node.loaded is not None
        assert last.kv_total_pages == node.loaded.kv_pages
        assert last.steps >= steps, "counters never fall"


async def test_the_same_layers_serve_the_next_epoch_at_once_and_streams_go_on(
    tiny_folder: Path,
) -> None:
    right = await alone(tiny_folder, 1, 2, 3)
    async with node_and_router(tiny_folder) as (node, router):
        router.assign(1)
        await router.ready(1)
        loaded = node.loaded
        router.most = TOKENS // 2
        router.prompt(1, 1, TOKENS)
        router.prompt(2, 1, TOKENS)
        await router.until(lambda: len(router.tokens.get(1, ())) > 3)
        router.assign(2)
        await router.ready(2)
        assert node.loaded is loaded
        assert len(node.workers) == 1
        router.prompt(3, 2, TOKENS)
        router.move(2, 2)
        router.go_on()
        assert [await router.finished(r) for r in (1, 2, 3)] == right
        assert router.token_epochs == {1: {1}, 2: {1, 2}, 3: {2}}
        router.retain(2)
        worker = node.worker
        assert worker is not None
        await router.until(lambda: worker.statistics().open_requests == 2)
        worker.check()
        router.release(2, 3)
        await router.until(lambda: worker.statistics().open_requests == 0)
        assert router.refused == []


async def test_an_epoch_assigned_again_begins_without_sequences(tiny_folder: Path) -> None:
    """The router lost sight of the node: nobody would ever release what is open here."""
    async with node_and_router(tiny_folder) as (node, router):
        router.assign(1)
        await router.ready(1)
        router.prompt(1, 1, 1)
        await router.finished(1)
        router.assign(1)
        await router.until(lambda: len(router.readies) == 2)
        assert node.worker is not None
        assert node.worker.statistics().open_requests == 0
        node.worker.check()


def budget(loaded: Loaded, share: float) -> int:
    """Memory for the whole model and so much of its greatest KV pool."""
    assert loaded.layers.end == LAYERS
    kv = loaded.held_bytes - loaded.weight_bytes
    return int((loaded.weight_bytes + kv * share) / 0.95) + 1


async def measured(folder: Path) -> Loaded:
    """The whole model with all the room it can use."""
    async with node_and_router(folder, memory_bytes=1 << 30) as (node, router):
        router.assign(1)
        await router.ready(1)
        assert node.loaded is not None
        return node.loaded


async def test_a_pool_cut_short_grows_when_memory_comes_free_and_keeps_its_contents(
    tiny_folder: Path,
) -> None:
    right = await alone(tiny_folder, 1, 2)
    whole = await measured(tiny_folder)
    async with node_and_router(tiny_folder, memory_bytes=budget(whole, 1.1)) as (
        node,
        router,
    ):
        router.assign(1, (0, 3))
        await router.ready(1)
        router.assign(2)
        short = await router.ready(2)
        assert short.kv_pages < whole.kv_pages
        assert node.worker is not None
        # The pool grows under running streams: none of them ends before.
        router.most = TOKENS - 5
        router.prompt(1, 2, TOKENS)
        router.prompt(2, 2, TOKENS)
        await router.until(lambda: len(router.tokens.get(2, ())) > 5)
        router.retain(2)
        await router.until(lambda: len(router.readies) == 3)
        again = router.readies[-1]
        assert (again.epoch, again.kv_pages) == (2, whole.kv_pages)
        assert again.held_bytes > short.held_bytes
        router.go_on()
        assert [await router.finished(r) for r in (1, 2)] == right
        statistics = node.worker.statistics()
        assert statistics.kv_total_pages == whole.kv_pages
        node.worker.check()


async def test_without_room_beside_the_assignment_fails_in_numbers_and_what_is_held_serves(
    tiny_folder: Path,
) -> None:
    right = await alone(tiny_folder, 1)
    whole = await measured(tiny_folder)
    async with node_and_router(tiny_folder, memory_bytes=budget(whole, 0.02)) as (
        node,
        router,
    ):
        router.assign(1)
        await router.ready(1)
        router.assign(2, (0, 5))
        failure = await router.failed(2)
        assert failure.code == "no_room"
        assert "MiB" in failure.reason
        assert "free them first" in failure.reason
        router.prompt(1, 1, TOKENS)
        assert [await router.finished(1)] == right
        router.retain(7)
        await router.until(lambda: not node.workers)
        router.prompt(2, 1, 1)
        await router.until(lambda: (2, "not_ready") in router.refused)
        router.assign(3, (0, 5))
        await router.ready(3)


@pytest.mark.parametrize("fault", [RuntimeError("device fault"), OSError("disk gone")])
async def test_a_load_that_fails_harms_nothing_that_serves(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    right = await alone(tiny_folder, 1)
    read = SafetensorsReader.read
    kept: list[weakref.ref[torch.Tensor]] = []

    def failing(self: SafetensorsReader, entry: object) -> torch.Tensor:
        if len(kept) == 12:
            raise fault
        tensor = read(self, entry)  # type: ignore[arg-type]
        kept.append(weakref.ref(tensor))
        return tensor

    async with node_and_router(tiny_folder) as (node, router):
        router.assign(1)
        await router.ready(1)
        router.prompt(1, 1, TOKENS)
        with monkeypatch.context() as patch:
            patch.setattr(SafetensorsReader, "read", failing)
            router.assign(2, (0, 5))
            failure = await router.failed(2)
        assert failure.code == "load_failed"
        assert str(fault) in failure.reason
        assert [await router.finished(1)] == right
        assert len(node.workers) == 1
        router.assign(3, (0, 5))
        await router.ready(3)


class Gate:
    """Holds a load at a tensor until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.reads = 0
        read = SafetensorsReader.read

        def gated(reader: SafetensorsReader, entry: object) -> torch.Tensor:
            self.reads += 1
            self.reached.set()
            assert self.open.wait(60)
            return read(reader, entry)  # type: ignore[arg-type]

        monkeypatch.setattr(SafetensorsReader, "read", gated)


async def serving_and_loading(
    node: NodeDaemon, router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> Gate:
    """Epoch 1 serves, epoch 2 hangs in its load."""
    router.assign(1)
    await router.ready(1)
    gate = Gate(monkeypatch)
    router.assign(2, (0, 5))
    await router.until(gate.reached.is_set)
    assert len(node.workers) == 1
    return gate


async def test_what_a_retain_leaves_out_is_not_loaded_to_the_end(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node_and_router(tiny_folder) as (node, router):
        gate = await serving_and_loading(node, router, monkeypatch)
        router.assign(3, (1, 5))
        router.retain(1)
        router.assign(4)
        await router.until(lambda: len(node._slices._orders) == 3)
        gate.open.set()
        await router.ready(4)
        assert gate.reads == 1, "neither went on with the one nor began with the other"
        assert [r.epoch for r in router.readies] == [1, 4]
        assert router.failures == []
        assert [held.layers.end for held in node._slices._holdings] == [LAYERS]


async def test_a_router_that_restarted_meanwhile_gets_the_load_it_asks_for_again(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node_and_router(tiny_folder) as (node, router):
        gate = await serving_and_loading(node, router, monkeypatch)
        router.assign(9, (0, 5))
        router.retain(9)
        await router.until(lambda: len(node._slices._orders) == 2)
        gate.open.set()
        await router.ready(9)
        assert node._slices.epochs in ([1, 2, 9], [9])
        await router.until(lambda: node._slices.epochs == [9])
        assert gate.reads == 5 * 9 + 1, "loaded once"


async def test_a_stream_flows_while_another_slice_loads(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives each tensor only when one more token has come: either would wait for ever
    for the other if tokens waited for the load."""
    read = SafetensorsReader.read
    token, reads = threading.Condition(), 0
    came = 0

    def after_a_token(reader: SafetensorsReader, entry: object) -> torch.Tensor:
        nonlocal reads
        reads += 1
        with token:
            seen = came
            assert token.wait_for(lambda: came > seen, WAIT_S), "no token while it loads"
        return read(reader, entry)  # type: ignore[arg-type]

    async with node_and_router(tiny_folder) as (_, router):
        router.assign(1)
        await router.ready(1)
        monkeypatch.setattr(SafetensorsReader, "read", after_a_token)

        async def stream() -> None:
            nonlocal came
            for request in itertools.count(1):
                router.prompt(request, 1, 400)
                for count in range(1, 401):
                    await router.until(lambda: len(router.tokens.get(request, ())) >= count)  # noqa: B023
                    with token:
                        came += 1
                        token.notify()
                router.release(request)

        flowing = asyncio.create_task(stream())
        router.assign(2, (0, 5))
        await router.ready(2)
        flowing.cancel()
        assert reads == 5 * 9 + 1


async def test_warm_up_steps_are_jobs_of_their_own(tiny_folder: Path) -> None:
    """Between any two of a load's steps the device thread takes what else waits."""

    class Counting(ThreadPoolExecutor):
        jobs = 0

        def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
            self.jobs += 1
            return super().submit(fn, *args, **kwargs)

    with Counting(1) as device:
        loader = Loader(device)
        request = LoadRequest(
            node="n",
            folder=tiny_folder,
            layers=LayerRange(*WHOLE),
            device=torch.device("cpu"),
            dtype=torch.float32,
            attention="auto",
            memory_bytes=64 << 20,
        )
        loaded = await loader.load(request, lambda text: None, beside=True)
        assert device.jobs > 20
        assert loaded.kv_pages > 0
        await loader.close()


async def test_a_leaving_node_waits_for_the_routers_word(tiny_folder: Path) -> None:
    async with node_and_router(tiny_folder) as (node, router):
        router.assign(1)
        await router.ready(1)
        node.stop()
        await router.until(lambda: bool(router.of(control.Drain)))
        router.prompt(1, 1, TOKENS)
        await router.finished(1)
        assert node.workers, "it serves until it may go"
        drain = router.of(control.Drain)[0]
        assert isinstance(drain, control.Drain)
        router.say(control.Leave(drain.node, drain.incarnation, "drained"))
        # The answer to a heartbeat that was on its way when the router forgot the node.
        router.say(control.RegisterAgain("unknown"))
        await router.until(lambda: not node.workers)
        assert len(router.of(control.Register)) == 1, "it does not join anew as it goes"
