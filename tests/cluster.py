"""A whole cluster in one process: the real router and real nodes, over memory or real sockets.

Only the processes are missing; everything else is what runs in production. Leaving the context
checks that nothing leaked: pages, bookings, sequences, credit, tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from helix_mq.clock import SystemClock
from helix_mq.ids import NodeId
from helix_mq.messages.control import StepTimes
from helix_mq.models.digest import model_digest
from helix_mq.sampling import SamplingParams
from helix_mq.token_return import TokenReturn
from helix_mq.transport import MemoryTransport, Transport, ZmqTransport
from nodes.daemon import NodeDaemon
from nodes.identity import NodeIdentity
from nodes.security import NodeSecurity
from nodes.settings import BatchSection, NodeSettings
from nodes.settings import SecuritySection as NodeSecuritySection
from router.app import RouterApp
from router.main import build_app
from router.service import Broken, Delta, Finished, Generation
from router.settings import (
    AdmissionSection,
    JournalSection,
    LinksSection,
    PlacementSection,
    RouterSettings,
    SchedulingSection,
    SpeculationSection,
)

DEADLINE_S = 240.0


@dataclass(frozen=True)
class Result:
    """A finished stream."""

    token_ids: tuple[int, ...]
    text: str
    finish: Finished
    deltas: tuple[Delta, ...]


@dataclass
class Cluster:
    app: RouterApp
    folder: Path
    transport: Transport
    device: str = "cpu"
    daemons: dict[str, NodeDaemon] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def add_node(
        self,
        name: str,
        *,
        memory_bytes: int = 64 << 20,
        batch: BatchSection | None = None,
        window: int = 64 << 20,
        heartbeat_s: float = 0.1,
        region: str = "",
        times: StepTimes | None = None,
        tensor_parallel: int = 1,
        device_id: str = "",
    ) -> NodeDaemon:
        settings = NodeSettings(
            name=name,
            router=self.app.control_endpoint,
            listen=endpoint(self.transport, f"data-{name}"),
            model=self.folder,
            memory=memory_bytes,
            batch=batch or BatchSection(),
            window=window,
            heartbeat_s=heartbeat_s,
            region=region,
            tensor_parallel=tensor_parallel,
        )
        identity = NodeIdentity(
            folder=self.folder,
            model_digest=model_digest(self.folder),
            device=torch.device(self.device),
            device_text=self.device,
            dtype=torch.float32,
            memory_bytes=memory_bytes,
            device_id=device_id,
            times=times,
        )
        security = NodeSecurity(NodeSecuritySection())
        daemon = NodeDaemon(settings, identity, self.transport, security, SystemClock())
        self.daemons[name] = daemon
        self.tasks[name] = asyncio.create_task(daemon.run(), name=f"node-{name}")
        return daemon

    async def until(self, condition: object, what: str) -> None:
        """Polls a condition on the loop's own turns; a test's deadline, not a pause."""
        assert callable(condition)
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                for name, task in self.tasks.items():
                    if task.done() and not task.cancelled() and task.exception() is not None:
                        raise AssertionError(f"node {name} died") from task.exception()
                await asyncio.sleep(0.005)
        assert condition(), what

    async def ready(self) -> None:
        await self.until(lambda: self.app.status().serving, "the cluster serves")

    async def kill(self, name: str) -> None:
        """Ends a node without a goodbye, as far as one process can."""
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del self.daemons[name]

    async def restart_router(self, settings: RouterSettings) -> None:
        """Another router at the same place, and perhaps with the same journal; over memory only."""
        await self.app.close()
        self.app = build_app(settings, self.folder, self.transport, SystemClock())
        await self.app.start()

    async def run(
        self, generation: Generation, seen: Callable[[Delta], None] | None = None
    ) -> Result:
        """`seen` is told of each token as it comes: for what must happen in mid-stream."""
        stream = self.app.submit(generation)
        deltas: list[Delta] = []
        async with asyncio.timeout(DEADLINE_S):
            async for event in stream:
                match event:
                    case Delta():
                        assert event.index == len(deltas)
                        deltas.append(event)
                        if seen is not None:
                            seen(event)
                    case Finished():
                        return Result(
                            tuple(d.token for d in deltas if d.token is not None),
                            "".join(d.text for d in deltas),
                            event,
                            tuple(deltas),
                        )
                    case Broken():
                        raise event.error
        raise AssertionError("the stream ended without an end")

    async def quiet(self) -> None:
        """Waits until every node has given back every page, then checks all the books."""

        def idle() -> bool:
            return all(
                worker.statistics().open_requests == 0
                and worker.statistics().kv_free_pages == worker.statistics().kv_total_pages
                for daemon in self.daemons.values()
                for worker in daemon.workers
            )

        await self.until(idle, "all pages come back")
        self.app.core.check()
        for daemon in self.daemons.values():
            assert not daemon._plane.foreseen, "frames are expected of requests that have ended"
            for worker in daemon.workers:
                worker.check()


def endpoint(transport: Transport, name: str) -> str:
    return f"mem://{name}" if isinstance(transport, MemoryTransport) else "tcp://127.0.0.1:0"


@asynccontextmanager
async def cluster(
    folder: Path,
    placement: Mapping[str, str],
    *,
    zmq: bool = False,
    memory_bytes: int = 64 << 20,
    batch: BatchSection | None = None,
    window: int = 64 << 20,
    admission: AdmissionSection | None = None,
    scheduling: SchedulingSection | None = None,
    dead_after_s: float = 3.0,
    token_return: TokenReturn = "auto",
    speculation: SpeculationSection | None = None,
    journal: JournalSection | None = None,
    wait: bool = True,
    regions: Mapping[str, str] | None = None,
    times: StepTimes | None = None,
    tensor_parallel: int = 1,
    links: LinksSection | None = None,
    device_id: str = "",
    device: str = "cpu",
) -> AsyncIterator[Cluster]:
    """A running cluster with one node per entry of `placement` ("first:end"), all on `device`.

    With empty ranges the router splits the layers by memory once all nodes are there. `times`: what
    every node says to have measured; `device_id`: what it says of its device.
    """
    transport: Transport = ZmqTransport() if zmq else MemoryTransport()
    settings = RouterSettings(
        model=folder,
        model_name="tiny",
        control=endpoint(transport, "control"),
        clients=endpoint(transport, "clients"),
        data=endpoint(transport, "data"),
        placement=PlacementSection(
            nodes={NodeId(n): r for n, r in placement.items() if r},
            nodes_expected=len(placement),
        ),
        admission=admission or AdmissionSection(),
        scheduling=scheduling or SchedulingSection(),
        dead_after_s=dead_after_s,
        token_return=token_return,
        speculation=speculation or SpeculationSection(),
        journal=journal or JournalSection(),
        links=links or LinksSection(),
    )
    app = build_app(settings, folder, transport, SystemClock())
    await app.start()
    running = Cluster(app, folder, transport, device)
    try:
        for name in placement:
            await running.add_node(
                name,
                memory_bytes=memory_bytes,
                batch=batch,
                window=window,
                region=(regions or {}).get(name, ""),
                device_id=device_id,
                times=times,
                tensor_parallel=tensor_parallel,
            )
        if wait:
            await running.ready()
        yield running
        if wait:
            await running.quiet()
    finally:
        for daemon in running.daemons.values():
            daemon.stop()
        await asyncio.gather(*running.tasks.values(), return_exceptions=True)
        await running.app.close()
        await transport.close()


def greedy(prompt: tuple[int, ...], max_tokens: int, **more: object) -> Generation:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return Generation(prompt, sampling, **more)  # type: ignore[arg-type]
