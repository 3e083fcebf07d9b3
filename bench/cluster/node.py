"""A node of the emulated cluster: the production daemon with a paced engine and shaped links.

    python -m bench.cluster.node SPEC.json

Nothing else differs from `helix-mq node`. When it dials an endpoint it takes the way that the spec
gives for it, so that each pair of machines has its own.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from bench.cluster.paced import NodeLog, Pace, paced_load, table_of
from bench.node_spec import NodeSpec
from bench.routed import RoutedTransport
from helix_mq.clock import SystemClock
from helix_mq.models.resolve import resolve_model
from helix_mq.process import run
from helix_mq.settings import load as load_settings
from helix_mq.transport import ZmqTransport
from nodes.daemon import NodeDaemon
from nodes.identity import identify
from nodes.running import run_until
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings
from nodes.tuning import tune_process
from solver.objective import StepTimes


async def serve(spec: NodeSpec, settings: NodeSettings, stop: asyncio.Event) -> None:
    """Until stopped; then writes what its engine did."""
    tune_process()
    folder = await asyncio.to_thread(resolve_model, settings.model)
    identity = await asyncio.to_thread(identify, settings, folder)
    sockets = ZmqTransport()

    async def way(endpoint: str) -> str:
        return spec.ways.get(endpoint, endpoint)

    times = StepTimes(spec.prefill, spec.decode)
    pace = Pace(table_of(times))
    daemon = NodeDaemon(
        settings,
        identity,
        RoutedTransport(sockets, way),
        NodeSecurity(settings.security),
        SystemClock(),
        load=paced_load(times, pace),
    )

    try:
        await run_until(daemon, stop)
    finally:
        await sockets.close()
        log = NodeLog(settings.name, tuple(pace.steps))
        await asyncio.to_thread(Path(spec.log).write_bytes, msgspec.json.encode(log))


def main() -> None:
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=NodeSpec)
    settings = load_settings(NodeSettings, Path(spec.settings), {})
    settings.start_logging(node=settings.name)
    run(lambda stop: serve(spec, settings, stop))


if __name__ == "__main__":
    main()
