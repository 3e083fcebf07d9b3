"""Plain pyzmq with blocking calls: what there is to compare with. No event loop, no checks.

One part goes from PUSH to PULL; frames of three parts from DEALER to ROUTER, the sockets our
transport uses. Large parts go without a copy both ways, small ones with, whichever is faster.
"""

from __future__ import annotations

import time

import zmq

from bench.bus.common import Part, bound_socket, connected_socket, is_large, message_of
from bench.bus.types import Load, Measured, Spec

_VIEWED_BYTES = 64 * 1024
"""From here on a view of what was received is faster than a copy."""


class BlockingPlace:
    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._in, self.endpoint = bound_socket(self._context, spec)
        self._out: zmq.Socket[bytes] | None = None
        self._routed = spec.parts > 1
        self._message = message_of(spec)

    def connect(self, endpoint: str) -> None:
        self._out = connected_socket(self._context, self._spec, endpoint)

    def run(self, load: Load) -> Measured:
        cpu_s = time.process_time()
        start_s = time.perf_counter()
        trips_s: list[float] = []
        message = self._message
        last = self._spec.place == self._spec.places - 1
        if self._spec.place == 0 and load.mode == "trips":
            for _ in range(load.count):
                sent_s = time.perf_counter()
                self._send(message)
                self._receive()
                trips_s.append(time.perf_counter() - sent_s)
        elif self._spec.place == 0:
            for _ in range(load.count):
                self._send(message)
        elif last and load.mode != "trips":
            for _ in range(load.count):
                self._receive()
        else:
            for _ in range(load.count):
                self._send(self._receive())
        end_s = time.perf_counter()
        return Measured(start_s, end_s, time.process_time() - cpu_s, tuple(trips_s))

    def close(self) -> None:
        self._context.destroy(0)

    def _send(self, parts: list[Part]) -> None:
        assert self._out is not None
        send = self._out.send
        for part in parts[:-1]:
            send(part, zmq.SNDMORE)
        tensor = parts[-1]
        if is_large(tensor):
            send(tensor, copy=False)
        else:
            send(tensor)

    def _receive(self) -> list[Part]:
        recv = self._in.recv
        if self._routed:
            recv()
        parts: list[Part] = [recv() for _ in range(self._spec.parts - 1)]
        parts.append(recv(copy=False) if self._spec.size_bytes >= _VIEWED_BYTES else recv())
        return parts
