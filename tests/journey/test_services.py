"""The processes as a service manager sees them: `helix-mq router` and `node` with a notify socket.

One start of both. The node comes first: it must be ready without a router, since a router that is
down is no reason to fail the node's start.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from pathlib import Path

from helix_mq.demo import free_ports

DEADLINE_S = 90.0

Fields = dict[str, str]


class Service:
    """One process, its messages to the manager, and its log of JSON lines."""

    def __init__(self, folder: Path, name: str, watchdog_s: float) -> None:
        self.messages: list[Fields] = []
        self._folder = folder
        self._name = name
        self._watchdog_s = watchdog_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / f"{name}.notify"))
        self._socket.setblocking(False)
        self._came = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._ended: asyncio.Task[int]
        self.process: Process | None = None

    async def start(self, *arguments: str) -> None:
        self._listening = asyncio.create_task(self._listen())
        with (self._folder / f"{self._name}.log").open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "helix_mq",
                *arguments,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "NOTIFY_SOCKET": str(self._folder / f"{self._name}.notify"),
                    "WATCHDOG_USEC": str(int(self._watchdog_s * 1e6)),
                },
            )
        self._ended = asyncio.create_task(self.process.wait())

    async def _listen(self) -> None:
        # All the time: the kernel keeps ten messages, and the eleventh is not sent.
        while True:
            got = await asyncio.get_running_loop().sock_recv(self._socket, 65_536)
            self.messages.append(dict(line.split("=", 1) for line in got.decode().split("\n")))
            self._came.set()

    async def told(self, name: str, value: str = "1", *, times: int = 1) -> None:
        """Returns once the process has said so, so often in all."""
        while sum(m.get(name) == value for m in self.messages) < times:
            assert not self._ended.done(), f"{self._name} ended before it said {name}={value}"
            self._came.clear()
            came = asyncio.create_task(self._came.wait())
            await asyncio.wait([came, self._ended], return_when=asyncio.FIRST_COMPLETED)
            came.cancel()

    @property
    def status(self) -> str:
        return [m["STATUS"] for m in self.messages if "STATUS" in m][-1]

    def events(self) -> list[dict[str, str]]:
        """The whole log: every line is an event."""
        text = (self._folder / f"{self._name}.log").read_text()
        return [json.loads(line) for line in text.splitlines()]

    async def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        await self.told("STOPPING")
        return await self.process.wait()

    async def kill(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        self._socket.close()
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


async def test_both_processes_under_a_service_manager(tiny_folder: Path, tmp_path: Path) -> None:
    control, clients, data, http = free_ports(4)
    settings = tmp_path / "node.toml"
    settings.write_text(
        f'name = "alpha"\nrouter = "tcp://127.0.0.1:{control}"\nmodel = "{tiny_folder}"\n'
        'memory = "64MiB"\ndtype = "float32"\nthreads = 1\ndrain_s = 20\n'
        '[measure]\nat_start = false\n[log]\nformat = "json"\n'
    )
    (tmp_path / "router.toml").write_text(
        f'model = "{tiny_folder}"\nclients = "tcp://127.0.0.1:{clients}"\n'
        f'control = "tcp://127.0.0.1:{control}"\ndata = "tcp://127.0.0.1:{data}"\n'
        f"[http]\nport = {http}\n"
        '[placement.nodes]\nalpha = "0:6"\n[log]\nformat = "json"\n'
    )
    node, router = Service(tmp_path, "node", 20.0), Service(tmp_path, "router", 0.4)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await node.start("node", "--config", str(settings))
            await node.told("READY")
            assert node.status == f"waiting for the router at tcp://127.0.0.1:{control}"

            await router.start("router", "--config", str(tmp_path / "router.toml"))
            await router.told("READY")
            _, writer = await asyncio.open_connection("127.0.0.1", http)
            writer.close()
            await router.told("WATCHDOG", times=5)
            await router.told("STATUS", "serving, 1 node, 0 requests")
            await node.told("STATUS", "serving layers 0-5, 0 requests")

            assert await node.end() == 0
            await node.told("EXTEND_TIMEOUT_USEC", "50000000")
            assert await router.end() == 0
    finally:
        await node.kill()
        await router.kill()

    for service in (node, router):
        assert sum("READY" in m for m in service.messages) == 1
    assert {e["node"] for e in node.events()} == {"alpha"}
    assert "is to hold layers 0-5" in [
        e["message"] for e in router.events() if e.get("node") == "alpha"
    ]
    assert "stopping (SIGTERM)" in [e["message"] for e in router.events()]
