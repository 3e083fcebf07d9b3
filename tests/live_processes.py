"""A router with a journal and its nodes as real processes, stopped and started in place."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from helix_mq.demo import free_ports

ROUTER = "router"


@dataclass
class LiveProcesses:
    """`slices`: of each node, as in `[placement.nodes]`. `of_nodes`: lines for every node.toml."""

    folder: Path
    model: Path
    slices: Mapping[str, str]
    of_nodes: str = ""
    ports: list[int] = field(default_factory=lambda: free_ports(4))
    children: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def clients(self) -> str:
        return f"tcp://127.0.0.1:{self.ports[0]}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[3]}"

    def write_settings(self) -> None:
        clients, control, data, http = self.ports
        (self.folder / "router.toml").write_text(
            f'model = "{self.model}"\nmodel_name = "tiny"\nclients = "tcp://127.0.0.1:{clients}"\n'
            f'control = "tcp://127.0.0.1:{control}"\ndata = "tcp://127.0.0.1:{data}"\n'
            f'[http]\nport = {http}\n[journal]\npath = "{self.folder / "journal.db"}"\n'
            "[placement.nodes]\n" + "".join(f'{n} = "{r}"\n' for n, r in self.slices.items())
        )
        for name in self.slices:
            (self.folder / f"{name}.toml").write_text(
                f'name = "{name}"\nrouter = "tcp://127.0.0.1:{control}"\nmodel = "{self.model}"\n'
                f'memory = "64MiB"\ndtype = "float32"\nthreads = 1\n{self.of_nodes}'
            )

    async def start_all(self) -> None:
        self.write_settings()
        for name in (ROUTER, *self.slices):
            await self.start(name)

    async def start(self, name: str) -> None:
        kind = ROUTER if name == ROUTER else "node"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.children[name] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "helix_mq", kind),
                *("--config", str(self.folder / f"{name}.toml")),
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    async def kill_all(self) -> None:
        for child in self.children.values():
            if child.returncode is None:
                child.kill()
            await child.wait()
