"""What tests of links share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from helix_mq.transport import MemoryTransport, Transport, ZmqTransport
from tests.helix_mq.plane_ends import Net


@pytest.fixture(params=["mem", "tcp"])
async def net(request: pytest.FixtureRequest) -> AsyncIterator[Net]:
    transport: Transport = MemoryTransport() if request.param == "mem" else ZmqTransport()
    net = Net(transport, [], request.param)
    yield net
    for end in net.ends:
        await end.plane.close()
    await transport.close()
