"""The processes as a service manager sees them: `helix-mq router` and `node` with a notify socket.

One start of both, under the system calls, address families and memory rights of their unit files
where this machine has libseccomp and systemd-analyze. The node comes first: it must be ready
without a router, since a router that is down is no reason to fail the node's start.
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

import httpx

from helix_mq.demo import free_ports
from helix_mq.services.units import Kind, Service
from tests.deploy.confined import can_confine
from tests.native_cache import cache_with_kernels

DEADLINE_S = 240.0
REPOSITORY = Path(__file__).parents[2]

Fields = dict[str, str]


class Running:
    """One process, its messages to the manager, and its log of JSON lines."""

    def __init__(self, folder: Path, kind: Kind, watchdog_s: float) -> None:
        self.messages: list[Fields] = []
        self._folder = folder
        self._kind: Kind = kind
        self._watchdog_s = watchdog_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / f"{kind}.notify"))
        self._socket.setblocking(False)
        self._came = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._ended: asyncio.Task[int]
        self.process: Process | None = None

    async def start(self, *arguments: str) -> None:
        self._listening = asyncio.create_task(self._listen())
        with (self._folder / f"{self._kind}.log").open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._confined(),
                sys.executable,
                "-m",
                "helix_mq",
                *arguments,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "HELIX_MQ_CACHE": cache_with_kernels(self._folder / "cache"),
                    "NOTIFY_SOCKET": str(self._folder / f"{self._kind}.notify"),
                    "WATCHDOG_USEC": str(int(self._watchdog_s * 1e6)),
                },
            )
        self._ended = asyncio.create_task(self.process.wait())

    def _confined(self) -> tuple[str, ...]:
        if not can_confine():
            return ()
        unit = REPOSITORY / "deploy" / "systemd" / Service(self._kind).file
        return sys.executable, str(REPOSITORY / "tests" / "deploy" / "confined.py"), str(unit)

    async def _listen(self) -> None:
        # All the time: the kernel keeps ten messages, and the eleventh is not sent.
        while True:
            got = await asyncio.get_running_loop().sock_recv(self._socket, 65_536)
            self.messages.append(dict(line.split("=", 1) for line in got.decode().split("\n")))
            self._came.set()

    async def told(self, name: str, value: str = "1", *, times: int = 1) -> None:
        """Returns once the process has said so, so often in all."""
        while sum(m.get(name) == value for m in self.messages) < times:
            assert not self._ended.done(), f"{self._kind} ended before it said {name}={value}"
            self._came.clear()
            came = asyncio.create_task(self._came.wait())
            await asyncio.wait([came, self._ended], return_when=asyncio.FIRST_COMPLETED)
            came.cancel()

    async def next_message(self) -> None:
        self._came.clear()
        await self._came.wait()

    @property
    def status(self) -> str:
        return [m["STATUS"] for m in self.messages if "STATUS" in m][-1]

    def events(self) -> list[dict[str, str]]:
        """The whole log: every line is an event."""
        text = (self._folder / f"{self._kind}.log").read_text()
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
        '[measure]\nmax_seconds = 0.5\n[log]\nformat = "json"\n'
    )
    (tmp_path / "router.toml").write_text(
        f'model = "{tiny_folder}"\nclients = "tcp://127.0.0.1:{clients}"\n'
        f'control = "tcp://127.0.0.1:{control}"\ndata = "tcp://127.0.0.1:{data}"\n'
        f'[http]\nport = {http}\n[journal]\npath = "{tmp_path / "journal.db"}"\n'
        '[log]\nformat = "json"\n'
    )
    node, router = Running(tmp_path, "node", 20.0), Running(tmp_path, "router", 0.4)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await node.start("node", "--config", str(settings))
            await node.told("READY")
            assert node.status == f"waiting for the router at tcp://127.0.0.1:{control}"

            await router.start("router", "--config", str(tmp_path / "router.toml"))
            await router.told("READY")
            await router.told("WATCHDOG", times=5)
            await router.told("STATUS", "serving, 1 node, 0 requests")
            await node.told("STATUS", "serving layers 0-5, 0 requests")
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http}", timeout=240) as ask:
                said = {"prompt": "one two", "max_tokens": 4, "model": tiny_folder.stem}
                answer = await ask.post("/v1/completions", json=said, timeout=240)
                assert answer.json()["usage"]["completion_tokens"] >= 1, answer.text
                await ask.post("/v1/helix/replan")
                while not (await ask.get("/v1/helix/cluster")).json()["verdict"]:
                    await router.next_message()

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
