"""One loaded slice at work: its worker and the task that steps it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from helix_mq.clock import Clock
from helix_mq.errors import LocalError
from nodes.batching import BatchLimits
from nodes.device import DeviceThread
from nodes.inbox import NodeView
from nodes.loading import Loaded
from nodes.settings import BatchSection
from nodes.steps import Links, WorkerOptions
from nodes.tracing import Tracer
from nodes.worker import Worker


class ServingSlice:
    """Serves from `start` to `stop`; afterwards nothing here holds weights or pages."""

    def __init__(
        self,
        node: str,
        loaded: Loaded,
        worker: Worker,
        on_end: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self.loaded = loaded
        self.worker = worker
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[str] = loop.create_future()

        def on_lost(reason: str) -> None:
            if not lost.done():
                lost.set_result(reason)

        def from_any_thread(reason: str) -> None:
            # A loop that has ended has nothing left to stop.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(on_lost, reason)

        loaded.engine.watch(from_any_thread)
        self._steps = asyncio.create_task(_step(worker, lost), name=f"steps {node} {loaded.layers}")
        self._steps.add_done_callback(on_end)

    async def grow(self, kv_pages: int) -> None:
        """Enlarges the KV pool between two steps; raises torch.OutOfMemoryError when it cannot."""
        engine = self.loaded.engine
        await self.worker.between_steps(lambda: engine.grow(kv_pages))

    async def shrink(self, least_pages: int) -> None:
        """Cuts the KV pool down between two steps; see Engine.shrink."""
        engine = self.loaded.engine
        await self.worker.between_steps(lambda: engine.shrink(least_pages))

    async def stop(self) -> None:
        """After the step in progress; its sequences are closed."""
        self._steps.cancel()
        await asyncio.gather(self._steps, return_exceptions=True)
        self.worker.close_all()
        await asyncio.to_thread(self.loaded.engine.close)


async def _step(worker: Worker, lost: asyncio.Future[str]) -> None:
    """The worker's steps; raises what ends them, or LocalError when the engine says it is lost."""
    steps = asyncio.create_task(worker.run())
    try:
        either: list[asyncio.Future[Any]] = [steps, lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            raise LocalError(lost.result())
        await steps
    finally:
        steps.cancel()
        await asyncio.gather(steps, return_exceptions=True)


def make_worker(
    node: str,
    loaded: Loaded,
    *,
    epoch: int,
    depth: int,
    batch: BatchSection,
    clock: Clock,
    device: DeviceThread,
    links: Links,
    tracer: Tracer,
) -> Worker:
    config = loaded.config
    return Worker(
        NodeView(
            node=node,
            epochs=frozenset({epoch}),
            held=loaded.layers,
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            max_context=config.max_context,
            eos_ids=config.eos_ids,
        ),
        loaded.engine,
        options=WorkerOptions(
            depth,
            BatchLimits(
                batch.prefill_tokens or loaded.prefill_budget(batch.prefill_objective_s),
                batch.max_rows,
                batch.min_decodes,
                batch.spread,
            ),
            loaded.expectation(),
            tracer,
        ),
        clock=clock,
        device=device,
        links=links,
    )
