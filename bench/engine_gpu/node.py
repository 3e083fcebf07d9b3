"""A node of the suite's cluster: the production daemon, but that its weights are random.

python -m bench.engine_gpu.node NODE.toml
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

from bench.engine_gpu.models import paged_on_cpu, random_slice, recorder_for
from helix_mq.clock import SystemClock
from helix_mq.models.config import ModelConfig
from helix_mq.process import run
from helix_mq.settings import load as load_settings
from helix_mq.transport import ZmqTransport
from nodes.daemon import NodeDaemon
from nodes.identity import identify
from nodes.loading import LoadRequest, load
from nodes.model.slice import ModelSlice
from nodes.model.weights import Progress
from nodes.running import run_until
from nodes.security import NodeSecurity
from nodes.settings import NodeSettings
from nodes.tuning import tune_process


def make_slice(request: LoadRequest, progress: Progress) -> ModelSlice:
    config = ModelConfig.from_folder(request.folder)
    attention = paged_on_cpu() if request.device.type == "cpu" else None
    model = random_slice(config, request.layers, request.device, request.dtype, attention)
    model.record_decodes(recorder_for(request.device))
    progress(1, 1)
    return model


async def serve(settings: NodeSettings, stop: asyncio.Event) -> None:
    tune_process()
    identity = await asyncio.to_thread(identify, settings, settings.model)
    transport = ZmqTransport()
    daemon = NodeDaemon(
        settings,
        identity,
        transport,
        NodeSecurity(settings.security),
        SystemClock(),
        load=partial(load, make=make_slice),
    )

    try:
        await run_until(daemon, stop)
    finally:
        await transport.close()


def main() -> None:
    settings = load_settings(NodeSettings, Path(sys.argv[1]), {})
    settings.start_logging(node=settings.name)
    run(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
