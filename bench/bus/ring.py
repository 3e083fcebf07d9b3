"""A ring of worker processes, as the bench sees it: started, connected, given loads, ended."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.bus.types import Load, Measured, Spec, System
from helix_mq.errors import HelixError
from helix_mq.transport import KeyPair

T = TypeVar("T")

ANSWER_S = 30.0


class BenchFailed(HelixError):
    """A worker ended or did not answer."""

    code = "bench_failed"


@dataclass(frozen=True, slots=True)
class RingKind:
    """What the processes of a ring run and how they are joined. `transport` is `tcp` or `ipc`."""

    system: System
    parts: int
    transport: str
    curve: bool
    places: int
    size_bytes: int

    @property
    def name(self) -> str:
        """As in the result: systems that can carry either say how many parts they do."""
        return self.system if self.system == "plane" else f"{self.system}-{self.parts}"


class Ring:
    """Use as a context manager: no worker outlives it."""

    def __init__(self, kind: RingKind) -> None:
        self.kind = kind
        self._doing = "starting"
        self._workers: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="helix-mq-bus-")

    def __enter__(self) -> Ring:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def run(self, load: Load) -> tuple[Measured, ...]:
        """One load through the ring: each place's figures."""
        self._doing = f"{load.mode} of {load.count}"
        self._tell_all(load)
        self._hear_all(dict[str, bool])
        self._tell_all({"go": True})
        return tuple(self._hear_all(Measured))

    def _start(self) -> None:
        kind = self.kind
        pairs = [KeyPair.new() for _ in range(kind.places)] if kind.curve else []
        keys = tuple((pair.public, pair.secret) for pair in pairs)
        for place in range(kind.places):
            self._workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "bench.bus.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            path = Path(self._folder.name) / f"{place}.sock"
            endpoint = "tcp://127.0.0.1:0" if kind.transport == "tcp" else f"ipc://{path}"
            self._tell(
                place,
                Spec(kind.system, kind.parts, place, kind.places, kind.size_bytes, endpoint, keys),
            )
        endpoints = [answer["endpoint"] for answer in self._hear_all(dict[str, str])]
        for place in range(kind.places):
            self._tell(place, {"connect": endpoints[(place + 1) % kind.places]})
        self._hear_all(dict[str, bool])

    def _end(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(OSError):
                assert worker.stdin is not None
                worker.stdin.close()
        for worker in self._workers:
            try:
                worker.wait(2)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
        self._folder.cleanup()

    def _tell_all(self, order: object) -> None:
        for place in range(len(self._workers)):
            self._tell(place, order)

    def _tell(self, place: int, order: object) -> None:
        stdin = self._workers[place].stdin
        assert stdin is not None
        try:
            stdin.write(msgspec.json.encode(order) + b"\n")
            stdin.flush()
        except OSError as e:
            raise BenchFailed(f"a worker of {self.kind.name} has ended: {e}") from None

    def _hear_all(self, kind: type[T]) -> list[T]:
        # Pipes have no time-outs: a ring that hangs loses its workers, and reading ends with them.
        watch = threading.Timer(ANSWER_S, self._kill)
        watch.start()
        try:
            return [self._hear(worker, kind) for worker in self._workers]
        finally:
            watch.cancel()

    def _hear(self, worker: subprocess.Popen[bytes], kind: type[T]) -> T:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            raise BenchFailed(
                f"a worker of {self.kind.name} ended, or did not answer for {ANSWER_S:.0f} s "
                f"({self._doing}); what it said is above"
            )
        return msgspec.json.decode(line, type=kind)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()
