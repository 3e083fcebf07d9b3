"""A router and its nodes as processes on loopback, every way between them through a gate.

Any two nodes of LAYOUT may be lost: the others still cover the model. What the cluster is like is
asked of the router's HTTP pages, as an operator would.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec

from bench.chaos.gates import Gate
from bench.chaos.picture import Picture, read_picture
from bench.chaos.processes import Child
from bench.node_spec import HELD_NODE, NodeSpec
from helix_mq.demo import free_ports
from helix_mq.errors import LocalError
from solver.objective import StepTimes

ROUTER = "router"
POLL_S = 0.05
STOP_S = 20.0

LAYOUT: Mapping[str, tuple[float, float]] = {
    "alpha": (0, 1 / 2),
    "beta": (0, 2 / 3),
    "gamma": (0, 1 / 3),
    "delta": (1 / 3, 1),
    "epsilon": (1 / 2, 1),
    "zeta": (1 / 3, 1),
}
"""Shares of the model's layers: every layer on three nodes at least, and from every end another
node goes on, whichever two are missing."""
OTHER_LAYOUT: Mapping[str, tuple[float, float]] = dict(
    zip(sorted(LAYOUT), [LAYOUT[name] for name in sorted(LAYOUT, reverse=True)], strict=True)
)
"""The same shares, each on another node than in LAYOUT."""


def slices_of(num_layers: int, layout: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """`first:end` per node. The layout's shares are rounded to whole layers."""
    return {
        name: f"{round(first * num_layers)}:{round(end * num_layers)}"
        for name, (first, end) in layout.items()
    }


@dataclass(frozen=True, slots=True)
class Plan:
    """What is started. `settings`: further lines of router.toml, before its sections; `http`: of
    its section of that name. With a `journal` the router may be killed, too. Without `gates`
    processes reach each other directly, and no way between them can be cut. `environment`: of the
    nodes, beside that of this process. `held`: the nodes compute no faster than this."""

    model: Path
    slices: Mapping[str, str]
    node_memory: str = "64MiB"
    settings: str = ""
    http: str = ""
    journal: bool = False
    gates: bool = True
    log_level: str = "info"
    environment: Mapping[str, str] = field(default_factory=dict)
    node_threads: int = 1
    node_dtype: str = "float32"
    held: StepTimes | None = None


@dataclass(slots=True)
class _Ports:
    control: int
    clients: int
    data: int
    http: int
    nodes: dict[str, int] = field(default_factory=dict)


class ChaosCluster:
    """`start` once, `stop` once; in between faults may do what they like to its parts."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.names = tuple(sorted(plan.slices))
        self._folder = folder
        numbers = iter(free_ports(4 + len(self.names)))
        self._ports = _Ports(next(numbers), next(numbers), next(numbers), next(numbers))
        self._ports.nodes = dict(zip(self.names, numbers, strict=True))
        self.data_gates = {n: Gate(p, self._name_of) for n, p in self._ports.nodes.items()}
        self.data_gates[ROUTER] = Gate(self._ports.data, self._name_of)
        self.control_gates = {n: Gate(self._ports.control, self._name_of) for n in self.names}
        self.client_gate = Gate(self._ports.clients, self._name_of)
        self.children: dict[str, Child] = {}
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._ports.http}", timeout=5)

    async def __aenter__(self) -> ChaosCluster:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def clients(self) -> str:
        """Where SDK clients connect, through their gate."""
        return self.client_gate.endpoint

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports.http}"

    @property
    def gates(self) -> list[Gate]:
        return [*self.data_gates.values(), *self.control_gates.values(), self.client_gate]

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.plan.gates:
            for gate in self.gates:
                await gate.start()
        path = self._write("router", self._router_toml())
        self.children[ROUTER] = Child(
            ROUTER, ("router", "--config", path), self._folder / "router.log"
        )
        for name in self.names:
            self.children[name] = self._node(name)
        for child in self.children.values():
            await child.start()

    def _node(self, name: str) -> Child:
        settings, held = self._write(name, self._node_toml(name)), self.plan.held
        log, environment = self._folder / f"{name}.log", self.plan.environment
        if held is None:
            return Child(name, ("node", "--config", settings), log, environment)
        steps = str(self._folder / f"{name}.steps.json")
        spec = self._folder / f"{name}.json"
        spec.write_bytes(
            msgspec.json.encode(NodeSpec(settings, held.prefill, held.decode, {}, steps))
        )
        return Child(name, (str(spec),), log, environment, module=HELD_NODE)

    def _write(self, name: str, text: str) -> str:
        path = self._folder / f"{name}.toml"
        path.write_text(text, "utf-8")
        return str(path)

    def _router_toml(self) -> str:
        ports = self._ports
        journal = f'[journal]\npath = "{self._folder}/journal.db"\n' if self.plan.journal else ""
        nodes = "\n".join(f'{name} = "{layers}"' for name, layers in self.plan.slices.items())
        return (
            f'model = "{self.plan.model}"\nmodel_name = "chaos"\n'
            f'clients = "tcp://127.0.0.1:{ports.clients}"\n'
            f'control = "tcp://127.0.0.1:{ports.control}"\n'
            f'data = "tcp://127.0.0.1:{ports.data}"\n'
            f'advertise_data = "{self.data_gates[ROUTER].endpoint}"\n'
            f'log_level = "{self.plan.log_level}"\n{self.plan.settings}\n'
            f"[http]\nport = {ports.http}\n{self.plan.http}\n{journal}[placement.nodes]\n{nodes}\n"
        )

    def _node_toml(self, name: str) -> str:
        return (
            f'name = "{name}"\nrouter = "{self.control_gates[name].endpoint}"\n'
            f'listen = "tcp://127.0.0.1:{self._ports.nodes[name]}"\n'
            f'advertise = "{self.data_gates[name].endpoint}"\n'
            f'model = "{self.plan.model}"\nmemory = "{self.plan.node_memory}"\n'
            f'dtype = "{self.plan.node_dtype}"\nthreads = {self.plan.node_threads}\n'
            f'device = "cpu"\nlog_level = "{self.plan.log_level}"\n'
        )

    def _name_of(self, port: int) -> str:
        for name, child in self.children.items():
            if child.has_port(port):
                return name
        return "?"

    async def stop(self) -> dict[str, int]:
        """Nodes first, then the router, each asked and not killed; the exit codes, -9 for one that
        did not go by itself."""
        codes: dict[str, int] = {}
        for gate in self.gates:
            await gate.heal()

        async def end(name: str) -> None:
            child = self.children[name]
            if child.running:
                try:
                    codes[name] = await child.end(STOP_S)
                except TimeoutError:
                    codes[name] = -signal.SIGKILL

        await asyncio.gather(*(end(n) for n in self.children if n != ROUTER))
        if ROUTER in self.children:
            await end(ROUTER)
        for gate in self.gates:
            await gate.close()
        await self._http.aclose()
        return codes

    async def picture(self) -> Picture | None:
        """What the router shows now; None when it does not answer."""
        with suppress(httpx.HTTPError):
            ready = await self._http.get("/ready")
            metrics = await self._http.get("/metrics")
            return read_picture(ready.json(), metrics.text)
        return None

    async def until(
        self, condition: Callable[[Picture], bool], what: str, timeout_s: float
    ) -> float:
        """Waits until the router's picture meets a condition; gives the seconds it took. Raises
        LocalError with what was seen last."""
        loop = asyncio.get_running_loop()
        started_s, last = loop.time(), "no answer from the router"
        while True:
            picture = await self.picture()
            if picture is not None:
                if condition(picture):
                    return loop.time() - started_s
                last = picture.text()
            if loop.time() - started_s > timeout_s:
                raise LocalError(f"{what}: not within {timeout_s:.0f} s; last seen: {last}")
            await asyncio.sleep(POLL_S)

    async def whole(self, timeout_s: float) -> float:
        """Until every node is ready and every link is up; seconds that took."""
        names = frozenset(self.names)
        return await self.until(lambda p: p.is_whole(names), "the cluster is whole", timeout_s)

    async def operate(self, page: str, body: object = None) -> httpx.Response | None:
        """An operator's page below /v1/helix: POST with a body, GET without; None when the router
        does not answer."""
        with suppress(httpx.HTTPError):
            method = "GET" if body is None else "POST"
            return await self._http.request(method, f"/v1/helix/{page}", json=body)
        return None

    async def idle(self, timeout_s: float) -> float:
        """Until nothing runs, waits or is held anywhere; seconds that took."""
        return await self.until(lambda p: p.is_idle, "the cluster is idle", timeout_s)
