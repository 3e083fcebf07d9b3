"""A bare socket on the event loop: watched by its FD, drained with NOBLOCK. Nothing of ours in it.

What our transport is built on, and so what its checks, limits and counts come on top of.
"""

from __future__ import annotations

import asyncio

import zmq

from bench.bus.common import Part, bound_socket, connected_socket, is_large, message_of
from bench.bus.loop_place import LoopPlace
from bench.bus.types import Spec

_MORE = zmq.NOBLOCK | zmq.SNDMORE


class DrainedPlace(LoopPlace):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._in, self.endpoint = bound_socket(self._context, spec)
        self._routed = spec.parts > 1
        self._message = message_of(spec)
        self._large = is_large(self._message[-1])

    async def bind(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._in.fileno(), self._drain)

    async def connect(self, endpoint: str) -> None:
        self._out = connected_socket(self._context, self.spec, endpoint)
        self._loop.add_reader(self._out.fileno(), self._room)

    async def close(self) -> None:
        for socket in (self._in, self._out):
            self._loop.remove_reader(socket.fileno())
        self._context.destroy(0)

    def prepare(self) -> None:
        pass

    def send_one(self) -> bool:
        return self._send(self._message)

    def _send(self, parts: list[Part]) -> bool:
        send = self._out.send
        try:
            for part in parts[:-1]:
                send(part, _MORE)
            send(parts[-1], zmq.NOBLOCK, copy=not self._large)
        except zmq.Again:
            return False
        return True

    def _room(self) -> None:
        if int(self._out.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            self.writable()

    def _drain(self) -> None:
        recv, parts = self._in.recv, self.spec.parts
        passes_on = self.spec.place and not (self.streams and self.is_last)
        while True:
            try:
                if self._routed:
                    recv(zmq.NOBLOCK)
                message: list[Part] = [recv(zmq.NOBLOCK, copy=False) for _ in range(parts)]
            except zmq.Again:
                return
            if passes_on and not self._send(message):
                raise RuntimeError(
                    "a bare socket keeps no queue: only one message may be under way"
                )
            self.arrived()
