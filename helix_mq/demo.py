"""`make demo`: a router and three unequal nodes as processes, a first prompt, an endpoint.

Starts the same commands an operator would, waits for the router to say ready, streams one chat
answer, and stays up. Only the core is imported here: everything else runs in the child processes.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from helix_mq.errors import LocalError
from helix_mq.models.config import ModelConfig

Say = Callable[[str], None]

NODE_SHARES = {"alpha": 0.40, "beta": 0.40, "gamma": 0.33}
"""Of the model's layers per node: unequal, and more than 1 together, so that slices overlap."""

_ROUTER = "router"
_STOP_GRACE_S = 15.0

_FIRST_PORT = 20_000
_TRIES = 20
"""Ports that are looked at for each that is wanted."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """Where everything listens and who holds what."""

    model: Path
    model_name: str
    control: str
    clients: str
    data: str
    http_port: int
    slices: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"


def free_ports(count: int) -> list[int]:
    """Ports free at this moment on loopback; all held open together, so they differ. Of those that
    the system gives nobody by itself, as far as there are any: another's outgoing connection, or
    whoever asks for any port, would else have one before it is bound again."""
    # Not the seeded generator, which would give two processes the same.
    chance = random.SystemRandom()
    kept = _kept_ports()
    wanted = chance.sample(kept, min(len(kept), _TRIES * count))
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            s = socket.socket()
            sockets.append(s)
            port = wanted.pop() if wanted else 0
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                if not port:
                    raise
                sockets.pop().close()
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _kept_ports() -> range:
    """Ports above the well-known services' that no socket gets unasked; none where the system does
    not say which those are."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return range(0)
    return range(_FIRST_PORT, max(_FIRST_PORT, lowest))


def slices_of(num_layers: int) -> dict[str, tuple[int, int]]:
    """Three overlapping, unequal slices that cover the model; fewer nodes for tiny models."""
    if num_layers < 3:
        return {"alpha": (0, num_layers)}
    lengths = [max(1, round(share * num_layers)) for share in NODE_SHARES.values()]
    first_end = min(lengths[0], num_layers - 2)
    last_first = max(num_layers - lengths[2], first_end)
    last_first = min(last_first, num_layers - 1)
    middle = (max(first_end - 2, 1), min(last_first + 2, num_layers))
    return dict(zip(NODE_SHARES, [(0, first_end), middle, (last_first, num_layers)], strict=True))


def make_plan(folder: Path, model_name: str, http_port: int) -> DemoPlan:
    config = ModelConfig.from_folder(folder)
    control, clients, data, spare = free_ports(4)
    return DemoPlan(
        model=folder,
        model_name=model_name,
        control=f"tcp://127.0.0.1:{control}",
        clients=f"tcp://127.0.0.1:{clients}",
        data=f"tcp://127.0.0.1:{data}",
        http_port=http_port or spare,
        slices=slices_of(config.num_layers),
    )


def router_toml(plan: DemoPlan) -> str:
    nodes = "\n".join(f'{name} = "{a}:{b}"' for name, (a, b) in plan.slices.items())
    return (
        f'model = "{plan.model}"\nmodel_name = "{plan.model_name}"\n'
        f'clients = "{plan.clients}"\ncontrol = "{plan.control}"\ndata = "{plan.data}"\n'
        f"[http]\nport = {plan.http_port}\n[placement.nodes]\n{nodes}\n"
    )


def node_toml(plan: DemoPlan, name: str) -> str:
    return (
        f'name = "{name}"\nrouter = "{plan.control}"\nmodel = "{plan.model}"\n'
        'memory = "1GiB"\ndtype = "float32"\nthreads = 1\n'
    )


class DemoCluster:
    """The child processes. Their logs go to files; what matters of them is shown."""

    def __init__(self, plan: DemoPlan, folder: Path, say: Say) -> None:
        self.plan = plan
        self._folder = folder
        self._say = say
        self._children: dict[str, asyncio.subprocess.Process] = {}

    async def start(self) -> None:
        router = self._folder / "router.toml"
        # A router that is killed and started again goes on with what it had accepted.
        journal = f'[journal]\npath = "{self._folder / "journal.db"}"\n'
        router.write_text(router_toml(self.plan) + journal)
        await self._spawn(_ROUTER, "router", "--config", str(router))
        for name, (first, end) in self.plan.slices.items():
            path = self._folder / f"{name}.toml"
            path.write_text(node_toml(self.plan, name))
            await self._spawn(name, "node", "--config", str(path))
            self._say(f"  {name}: to hold layers {first}-{end - 1}")

    async def _spawn(self, name: str, *arguments: str) -> None:
        with self.log_of(name).open("wb") as log:
            self._children[name] = await asyncio.create_subprocess_exec(
                sys.executable,
                # What lies in the folder that it was started from is not imported.
                "-P",
                "-m",
                "helix_mq",
                *arguments,
                stdout=log,
                stderr=log,
                # A Ctrl-C at the terminal reaches only this process, which stops the children in
                # order: nodes first, so that they can say goodbye to a router that is there.
                start_new_session=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONUNBUFFERED": "1",
                    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                },
            )

    def log_of(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def pid_of(self, name: str) -> int:
        return self._children[name].pid

    async def wait_ready(self, timeout_s: float) -> None:
        """Until the router serves. LocalError with a child's last words if one dies."""
        last = ""
        async with httpx.AsyncClient(base_url=self.plan.url, timeout=5) as http:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._check_children()
                    with suppress(httpx.TransportError):
                        answer = await http.get("/ready")
                        if answer.status_code == 200:
                            return
                        reason = str(answer.json().get("reason", ""))
                        if reason and reason != last:
                            self._say(f"  waiting: {reason}")
                            last = reason
                    await asyncio.sleep(0.2)

    def _check_children(self) -> None:
        for name, child in self._children.items():
            if child.returncode is not None:
                tail = self.log_of(name).read_text(errors="replace").strip().splitlines()[-5:]
                words = "\n    ".join(tail)
                raise LocalError(f"{name} ended with code {child.returncode}:\n    {words}")

    async def wait_for_a_death(self) -> None:
        """Returns only by raising LocalError: a process has died, or no node is left. A node that
        was let go, as `helix-mq node drain` does, is said and forgotten."""
        while True:
            waits = [asyncio.create_task(child.wait()) for child in self._children.values()]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waits:
                    task.cancel()
            for name in [n for n, c in self._children.items() if c.returncode == 0]:
                if name != _ROUTER:
                    del self._children[name]
                    self._say(f"  {name} has left the cluster")
            self._check_children()
            if self._children.keys() == {_ROUTER}:
                raise LocalError("all nodes have left: start the demo again")

    async def stop(self) -> None:
        """Stops nodes, then the router; kills what does not go."""
        names = [n for n in self._children if n != _ROUTER]
        await self._stop(names)
        await self._stop([_ROUTER])

    async def _stop(self, names: list[str]) -> None:
        children = {n: self._children[n] for n in names if n in self._children}
        for child in children.values():
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.send_signal(signal.SIGTERM)
        for name, child in children.items():
            try:
                async with asyncio.timeout(_STOP_GRACE_S):
                    await child.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
            del self._children[name]

    def kill(self) -> None:
        """All that still run, at once."""
        for child in self._children.values():
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()


def work_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="helix-mq-demo-")
