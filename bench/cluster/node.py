"""A node of the emulated cluster: the production daemon with a paced engine and shaped links.

    python -m bench.cluster.node SPEC.json

Nothing else differs from `helix-mq node`. When it dials an endpoint it takes the way that the spec
gives for it, so that each pair of machines has its own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from bench.cluster.paced import NodeLog, Pace, paced_load, table_of
from helix_mq.clock import SystemClock
from helix_mq.models.resolve import resolve_model
from helix_mq.process import run
from helix_mq.settings import load as load_settings
from helix_mq.transport import (
    ClientSecurity,
    Connection,
    DisconnectHandler,
    Handler,
    Limits,
    Listener,
    ServerSecurity,
    StateHandler,
    Transport,
    ZmqTransport,
)
from helix_mq.transport.limits import DEFAULT_LIMITS
from nodes.daemon import NodeDaemon
from nodes.identity import identify
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings
from nodes.tuning import tune_process
from solver.objective import Points, StepTimes


class NodeSpec(msgspec.Struct, frozen=True):
    """`settings`: its node.toml. `ways`: endpoint as the cluster knows it -> where this node dials
    instead. `log`: where a NodeLog is written at the end."""

    settings: str
    prefill: Points
    decode: Points
    ways: dict[str, str]
    log: str


class RoutedTransport:
    """ZeroMQ as ever, but what is dialled is looked up first."""

    def __init__(self, inner: Transport, ways: Mapping[str, str]) -> None:
        self._inner = inner
        self._ways = ways

    async def listen(
        self,
        endpoint: str,
        handler: Handler,
        *,
        limits: Limits = DEFAULT_LIMITS,
        security: ServerSecurity | None = None,
        insecure: bool = False,
        on_disconnect: DisconnectHandler | None = None,
    ) -> Listener:
        return await self._inner.listen(
            endpoint,
            handler,
            limits=limits,
            security=security,
            insecure=insecure,
            on_disconnect=on_disconnect,
        )

    async def connect(
        self,
        endpoint: str,
        handler: Handler,
        *,
        routing_id: bytes | None = None,
        limits: Limits = DEFAULT_LIMITS,
        security: ClientSecurity | None = None,
        insecure: bool = False,
        on_state: StateHandler | None = None,
    ) -> Connection:
        return await self._inner.connect(
            self._ways.get(endpoint, endpoint),
            handler,
            routing_id=routing_id,
            limits=limits,
            security=security,
            insecure=insecure,
            on_state=on_state,
        )

    async def close(self) -> None:
        await self._inner.close()


async def serve(spec: NodeSpec, settings: NodeSettings, stop: asyncio.Event) -> None:
    """Until stopped; then writes what its engine did."""
    tune_process()
    folder = await asyncio.to_thread(resolve_model, settings.model)
    identity = await asyncio.to_thread(identify, settings, folder)
    transport = RoutedTransport(ZmqTransport(), spec.ways)
    times = StepTimes(spec.prefill, spec.decode)
    pace = Pace(table_of(times))
    daemon = NodeDaemon(
        settings,
        identity,
        transport,
        NodeSecurity(settings.security),
        SystemClock(),
        load=paced_load(times, pace),
    )

    async def stop_on_signal() -> None:
        await stop.wait()
        daemon.stop()

    stopping = asyncio.create_task(stop_on_signal())
    try:
        await daemon.run()
    finally:
        stopping.cancel()
        await transport.close()
        log = NodeLog(settings.name, tuple(pace.steps))
        await asyncio.to_thread(Path(spec.log).write_bytes, msgspec.json.encode(log))


def main() -> None:
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=NodeSpec)
    settings = load_settings(NodeSettings, Path(spec.settings), {})
    settings.start_logging(node=settings.name)
    run(lambda stop: serve(spec, settings, stop))


if __name__ == "__main__":
    main()
