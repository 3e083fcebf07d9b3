"""The processes of a live run: a router, its nodes, and the shaper between them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import psutil

from bench.chaos.picture import Picture, read_picture
from bench.cluster.paced import NodeLog, table_of
from bench.cluster.stand_in import memory_for, write_stand_in
from bench.cluster.subject import Subject
from bench.cluster.ways import ShaperLog, ShaperSpec, WaySpec, machine_links
from bench.node_spec import HELD_NODE, NodeSpec
from helix_mq.demo import free_ports
from helix_mq.errors import LocalError
from helix_mq.ids import ROUTER, NodeId
from helix_mq.token_return import TokenReturn

START_S = 180.0
STOP_S = 20.0
POLL_S = 0.1
NOWHERE = "tcp://127.0.0.1:1"
"""Where machines without a link between them are sent: nobody listens there."""
SHAPER = "shaper"


class Process:
    """One child; its words go to a file."""

    def __init__(self, name: str, module: str, arguments: tuple[str, ...], log: Path) -> None:
        self.name = name
        self._command = (sys.executable, "-m", module, *arguments)
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=log, stderr=log, start_new_session=True, env=environment
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def cpu_s(self) -> float:
        """Used so far; 0 where it is gone."""
        with suppress(psutil.Error):
            if self._process is not None:
                times = psutil.Process(self._process.pid).cpu_times()
                return times.user + times.system
        return 0.0

    async def end(self) -> None:
        """Asks it to go; kills it when it does not."""
        process = self._process
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.send_signal(number)
                with suppress(TimeoutError):
                    async with asyncio.timeout(STOP_S):
                        await process.wait()

    def last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").strip().splitlines()[-5:])


@dataclass(slots=True)
class _Ports:
    control: int
    clients: int
    data: int
    http: int
    nodes: dict[NodeId, int] = field(default_factory=dict)
    ways: dict[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choices:
    """What the router is told beside the plan."""

    scheduler: str
    seed: int = 0
    token_return: TokenReturn = "auto"
    prefer_near: bool = True


class LiveCluster:
    """An async context: whole when entered, gone when left; `logs` then has what was done."""

    def __init__(self, subject: Subject, choices: Choices, folder: Path) -> None:
        self._subject = subject
        self._choices = choices
        self._folder = folder
        self._names = sorted(subject.placement.slices)
        self._links = {
            ends: link
            for ends, link in machine_links(subject.problem).items()
            if set(ends) <= {ROUTER, *self._names}
        }
        numbers = iter(free_ports(4 + len(self._names) + len(self._links)))
        self._ports = _Ports(next(numbers), next(numbers), next(numbers), next(numbers))
        self._ports.nodes = {name: next(numbers) for name in self._names}
        self._ports.ways = {ends: next(numbers) for ends in self._links}
        self.processes: dict[str, Process] = {}
        url = f"http://127.0.0.1:{self._ports.http}"
        self._http = httpx.AsyncClient(base_url=url, timeout=5)

    @property
    def clients(self) -> str:
        return f"tcp://127.0.0.1:{self._ports.clients}"

    async def __aenter__(self) -> LiveCluster:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        problem = self._subject.problem
        model = write_stand_in(self._folder / "model", problem.num_layers, problem.activation_bytes)
        self._add(SHAPER, "bench.cluster.shaper", (self._shaper_spec(),))
        settings = self._write("router.toml", self._router_toml(model))
        self._add(ROUTER, "helix_mq", ("router", "--config", settings))
        for name in self._names:
            self._add(name, HELD_NODE, (self._node_spec(name, model),))
        for process in self.processes.values():
            await process.start()
        await self._until_whole()

    def _add(self, name: str, module: str, arguments: tuple[str, ...]) -> None:
        log = self._folder / f"{name.removeprefix('@')}.log"
        self.processes[name] = Process(name, module, arguments, log)

    def _write(self, name: str, text: str | bytes) -> str:
        path = self._folder / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    def _shaper_spec(self) -> str:
        ports = self._ports
        targets: dict[str, int] = {ROUTER: ports.data}
        targets.update((str(name), port) for name, port in ports.nodes.items())
        ways = tuple(
            WaySpec(ends[0], ends[1], ports.ways[ends], targets[ends[1]], rate, latency_s)
            for ends, (rate, latency_s) in self._links.items()
        )
        nics: dict[str, tuple[float, float]] = {
            str(node.name): (node.nic_out_bytes_per_s, node.nic_in_bytes_per_s)
            for node in self._subject.problem.nodes
            if node.name in ports.nodes
        }
        spec = ShaperSpec(ways, nics, str(self._folder / "shaper.json"))
        return self._write("shaper-spec.json", msgspec.json.encode(spec))

    def _router_toml(self, model: Path) -> str:
        ports, chosen = self._ports, self._choices
        return (
            f'model = "{model}"\nmodel_name = "stand-in"\nlog_level = "info"\n'
            f'token_return = "{chosen.token_return}"\n'
            f'clients = "tcp://127.0.0.1:{ports.clients}"\n'
            f'control = "tcp://127.0.0.1:{ports.control}"\n'
            f'data = "tcp://127.0.0.1:{ports.data}"\n'
            f"[http]\nport = {ports.http}\n"
            f'[placement]\nplan = "{self._subject.plan}"\n'
            # The simulator has no texts, and a stand-in's would be guessed far too well.
            "[speculation]\nenabled = false\n"
            f'[scheduling]\nmethod = "{chosen.scheduler}"\nseed = {chosen.seed}\n'
            f"prefer_near = {str(chosen.prefer_near).lower()}\n"
            "[admission]\nmax_wait_s = 86400\nmax_waiting = 100000\n"
        )

    def _way(self, source: str, target: str) -> str:
        port = self._ports.ways.get((source, target))
        return f"tcp://127.0.0.1:{port}" if port is not None else NOWHERE

    def _advertised(self, name: NodeId) -> str:
        """As the router reaches it; peers have ways of their own. Where the router has no link to
        it, its own endpoint, over which no plan leads."""
        if (ROUTER, name) in self._ports.ways:
            return self._way(ROUTER, name)
        return f"tcp://127.0.0.1:{self._ports.nodes[name]}"

    def _node_spec(self, name: NodeId, model: Path) -> str:
        subject, ports = self._subject, self._ports
        times, held = subject.times_of(name), subject.placement.slices[name]
        settings = self._write(
            f"{name}.toml",
            f'name = "{name}"\nrouter = "tcp://127.0.0.1:{ports.control}"\n'
            f'listen = "tcp://127.0.0.1:{ports.nodes[name]}"\n'
            f'advertise = "{self._advertised(name)}"\n'
            f'model = "{model}"\nmemory = {memory_for(model, held, subject.kv_pages(name))}\n'
            'dtype = "float32"\ndevice = "cpu"\nthreads = 1\nlog_level = "warning"\n'
            # What is emulated here has devices of its own.
            'shares_device = "own"\n'
            "drain_s = 0\n"
            f"[batch]\nprefill_tokens = {table_of(times).limits.prefill_tokens}\n"
            "[measure]\nat_start = false\n",
        )
        ways = {self._advertised(o): self._way(name, o) for o in self._names if o != name}
        ways[f"tcp://127.0.0.1:{ports.data}"] = self._way(name, ROUTER)
        log = str(self._folder / f"{name}.steps.json")
        spec = NodeSpec(settings, times.prefill, times.decode, ways, log)
        return self._write(f"{name}.spec.json", msgspec.json.encode(spec))

    async def _until_whole(self) -> None:
        """Every node ready with the KV room it is to have, every link up. LocalError with what is
        missing."""
        loop = asyncio.get_running_loop()
        ends_s, last = loop.time() + START_S, "no answer from the router"
        while True:
            picture = await self.picture()
            if picture is not None:
                last = self._missing(picture)
                if not last:
                    return
            for process in self.processes.values():
                if not process.running:
                    raise LocalError(f"{process.name} has ended: {process.last_words()}")
            if loop.time() > ends_s:
                raise LocalError(f"the emulated cluster is not whole after {START_S:g} s: {last}")
            await asyncio.sleep(POLL_S)

    def _missing(self, picture: Picture) -> str:
        states = {n: s for n, s in picture.nodes.items() if not s.startswith("ready")}
        if not picture.ready or states or set(picture.nodes) != set(self._names):
            return picture.text()
        for name in self._names:
            has, wants = picture.total_pages.get(name, 0), self._subject.kv_pages(name)
            if has != wants:
                return f"{name} has {has} KV pages, {wants} are to be emulated"
        down = [f"{a} > {b}" for a, b in self._links if picture.down_s.get((a, b), 1.0)]
        return f"links down: {', '.join(down)}" if down else ""

    async def picture(self) -> Picture | None:
        """What the router shows now; None when it does not answer."""
        with suppress(httpx.HTTPError):
            ready = await self._http.get("/ready")
            metrics = await self._http.get("/metrics")
            return read_picture(ready.json(), metrics.text)
        return None

    def cpu_s(self) -> dict[str, float]:
        return {name: process.cpu_s() for name, process in self.processes.items()}

    async def stop(self) -> None:
        """Nodes first; what they did is on disk then."""
        nodes = [p for name, p in self.processes.items() if name in self._ports.nodes]
        await asyncio.gather(*(p.end() for p in nodes))
        for name in (ROUTER, SHAPER):
            if name in self.processes:
                await self.processes[name].end()
        await self._http.aclose()

    def node_logs(self) -> list[NodeLog]:
        """After `stop`. LocalError where a node left none."""
        logs = []
        for name in self._names:
            path = self._folder / f"{name}.steps.json"
            if not path.is_file():
                raise LocalError(f"{name} left no log: {self.processes[name].last_words()}")
            logs.append(msgspec.json.decode(path.read_bytes(), type=NodeLog))
        return logs

    def shaper_log(self) -> ShaperLog:
        """After `stop`. LocalError where it left none."""
        path = self._folder / "shaper.json"
        if not path.is_file():
            raise LocalError(f"the shaper left no log: {self.processes[SHAPER].last_words()}")
        return msgspec.json.decode(path.read_bytes(), type=ShaperLog)
