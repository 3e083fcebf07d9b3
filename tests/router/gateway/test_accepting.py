"""A crowd of new connections is let in within a few turns of the loop the router runs on."""

from __future__ import annotations

import asyncio
import os
import socket

import uvloop

from helix_mq.clock import SystemClock
from router.gateway import GatewayServer
from router.metrics import RouterMetrics
from router.settings import HttpSection
from tests.echo_service import EchoService

CROWD = 160


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_crowd_does_not_come_in_one_per_turn(service: EchoService) -> None:
    """Under overload a turn takes milliseconds, and whoever is to be refused waits for them all."""

    async def turns() -> int:
        server = GatewayServer(service, HttpSection(port=0), RouterMetrics(SystemClock()))
        await server.start()
        crowd = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(CROWD)]
        before, count = descriptors(), 0
        while descriptors() < before + CROWD and count < 2 * CROWD:
            count += 1
            await asyncio.sleep(0)
        for one in crowd:
            one.close()
        await server.stop()
        return count

    assert uvloop.run(turns()) <= CROWD / 4
