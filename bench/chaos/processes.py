"""One child process: started, killed, stopped, continued, asked to go; and what it holds."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from helix_mq.errors import LocalError


@dataclass(frozen=True, slots=True)
class Holds:
    """What a process holds at one moment."""

    rss_bytes: int
    descriptors: int
    threads: int


class Child:
    """`helix-mq`, or another module of ours, with some arguments. Its words go to `log`, of all its
    lives one after another."""

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        log: Path,
        environment: Mapping[str, str] | None = None,
        module: str = "helix_mq",
    ) -> None:
        """`environment`: beside that of this process."""
        self.name = name
        self._module = module
        self.log = log
        self._environment = environment or {}
        self.lives = 0
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        assert not self.running
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                *self._arguments,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONUNBUFFERED": "1",
                    **self._environment,
                },
            )
        self.lives += 1

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise LocalError(f"{self.name} was never started")
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def ended(self, timeout_s: float) -> int:
        """Its exit code, negative for a signal. Raises TimeoutError."""
        if self._process is None:
            return 0
        async with asyncio.timeout(timeout_s):
            return await self._process.wait()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended(30)

    async def end(self, grace_s: float) -> int:
        """Asks it to go, and kills it when it does not within the grace."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return await self.ended(grace_s)
        except TimeoutError:
            await self.kill()
            raise

    def holds(self) -> Holds:
        p = psutil.Process(self.pid)
        with p.oneshot():
            return Holds(p.memory_info().rss, p.num_fds(), p.num_threads())

    def has_port(self, port: int) -> bool:
        """One of its connections has this local port."""
        if not self.running:
            return False
        with suppress(psutil.Error):
            connections = psutil.Process(self.pid).net_connections("tcp")
            return any(c.laddr and c.laddr.port == port for c in connections)
        return False

    def last_words(self, lines: int = 5) -> str:
        text = self.log.read_text(errors="replace").strip().splitlines()[-lines:]
        return "\n    ".join(text)
