"""The connecting end: one DEALER socket to one listener, redialled for as long as it is open.

ZeroMQ redials by itself while nobody answers. Once a connection was lost or refused, this module
dials anew: with a fresh routing id, and with pauses that grow, which ZeroMQ does not do after a
refused handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time

import zmq

from helix_mq.transport.api import (
    Delivery,
    Handler,
    LinkPhase,
    LinkState,
    Parts,
    StateHandler,
)
from helix_mq.transport.backlog import Backlog
from helix_mq.transport.limits import Limits
from helix_mq.transport.monitor import Monitor, SocketEvent, SocketEventKind
from helix_mq.transport.pump import SLICE_MESSAGES, SLICE_S, Pump
from helix_mq.transport.refusals import LOST
from helix_mq.transport.statistics import ChannelStatistics, Counters
from helix_mq.transport.wire import LargeInFlight, large_bytes, receive, try_send

log = logging.getLogger(__name__)

_NONCE_BYTES = 8
MAX_NAME_BYTES = 200


class ZmqConnection:
    """Use ZmqTransport.connect."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        endpoint: str,
        handler: Handler,
        limits: Limits,
        *,
        name: bytes | None,
        server: str | None,
        on_state: StateHandler | None,
        counters: Counters,
    ) -> None:
        self._socket = socket
        self._endpoint = endpoint
        self._handler = handler
        self._limits = limits
        self._name = name
        self._server = server
        self._on_state = on_state
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._backlog = Backlog(limits)
        self._large = LargeInFlight(limits.backlog_bytes)
        self._state: LinkState | None = None
        self._up = False
        self._lost = False
        self._ever_up = False
        self._failures = 0
        self._redial: asyncio.TimerHandle | None = None
        self._monitor = Monitor(socket, self._on_event, counters.where)
        self._pump = Pump(socket, self._step, counters.where)
        self._dial()

    def send(self, parts: Parts) -> bool:
        """See Connection.send."""
        nbytes = self._limits.check_outgoing(parts)
        if self._pump.stopped:
            return False
        if self._up and not self._backlog and self._send_now(parts, nbytes):
            self._pump.poke()
            return True
        return self._backlog.offer(parts, nbytes)

    def statistics(self) -> ChannelStatistics:
        return self._counters.statistics(
            backlog_messages=len(self._backlog),
            backlog_bytes=self._backlog.nbytes + self._large.nbytes,
        )

    async def close(self) -> None:
        if self._pump.stopped:
            return
        if self._up:
            self._flush()
        self._pump.stop()
        if self._redial is not None:
            self._redial.cancel()
        self._monitor.close()
        self._socket.close()
        self._up = False
        self._drop_backlog("closed")

    def _send_now(self, parts: Parts, nbytes: int) -> bool:
        large = large_bytes(parts)
        if large and not self._large.has_room(large):
            return False
        try:
            try_send(self._socket, parts, self._large)
        except zmq.Again:
            return False
        self._counters.messages_out += 1
        self._counters.bytes_out += nbytes
        return True

    def _flush(self) -> bool:
        """Sends what waits, a slice of it at most; True when more could go at once."""
        for _ in range(SLICE_MESSAGES):
            if not self._backlog:
                return False
            parts, nbytes = self._backlog.first()
            if not self._send_now(parts, nbytes):
                return False
            self._backlog.pop()
        return bool(self._backlog)

    def _step(self) -> bool:
        if not self._up:
            # News of the connection comes before its first message.
            self._monitor.drain()
        more = self._drain()
        if more or self._pump.stopped:
            return more
        if self._lost:
            self._hang_up(LinkState(LinkPhase.DISCONNECTED, LOST))
            return False
        return self._up and bool(self._backlog) and (self._flush() or self._readable())

    def _readable(self) -> bool:
        """Whether the sends of a flush took the wake-up of an arriving message with them."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _drain(self) -> bool:
        until = time.perf_counter() + SLICE_S
        counters = self._counters
        for _ in range(SLICE_MESSAGES):
            if self._pump.stopped:
                return False
            try:
                received = receive(self._socket, self._limits)
            except zmq.Again:
                return False
            if received.fault:
                counters.drop(received.fault, self._endpoint)
                continue
            counters.messages_in += 1
            counters.bytes_in += received.nbytes
            try:
                self._handler(Delivery(b"", self._server, received.parts))
            except Exception as e:
                counters.handler_failed(e)
            if time.perf_counter() > until:
                return True
        return True

    def _on_event(self, event: SocketEvent) -> None:
        match event.kind:
            case SocketEventKind.READY:
                self._lost = False
                self._ready()
            case SocketEventKind.LOST if self._up:
                # What arrived before the loss is delivered before the news of it.
                self._lost = True
                self._pump.poke()
            case SocketEventKind.REFUSED:
                self._counters.handshake_failed(event.refusal)
                self._hang_up(LinkState(LinkPhase.REFUSED, event.refusal.sentence))
            case _:
                pass

    def _ready(self) -> None:
        if self._ever_up:
            self._counters.reconnects += 1
        self._ever_up = self._up = True
        self._failures = 0
        # A greeting sent by `on_state` goes first; what waited for the link follows.
        waiting, self._backlog = self._backlog, Backlog(self._limits)
        self._tell(LinkState(LinkPhase.CONNECTED))
        self._backlog.take_over(waiting)
        self._pump.poke()

    def _hang_up(self, state: LinkState) -> None:
        """Gives the connection up, tells why, and dials anew after a pause."""
        was_up, self._up, self._lost = self._up, False, False
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disconnect(self._endpoint)
        if was_up:
            self._drop_backlog("disconnected")
        pause_s = min(
            self._limits.redial_max_s, self._limits.redial_s * 2 ** min(self._failures, 30)
        )
        self._failures += 1
        if self._redial is not None:
            self._redial.cancel()
        # Spread, so that many connections do not come back to a restarted peer at once.
        self._redial = self._loop.call_later(pause_s * random.uniform(0.5, 1.0), self._dial)
        self._tell(state)

    def _dial(self) -> None:
        self._redial = None
        if self._pump.stopped:
            return
        if self._name is not None:
            nonce = secrets.token_bytes(_NONCE_BYTES)
            self._socket.setsockopt(zmq.ROUTING_ID, self._name + nonce)
        self._socket.connect(self._endpoint)

    def _drop_backlog(self, reason: str) -> None:
        lost = self._backlog.clear()
        if lost:
            self._counters.drop(reason, self._endpoint, lost)

    def _tell(self, state: LinkState) -> None:
        if state == self._state:
            return
        self._state = state
        if self._on_state is None:
            return
        try:
            self._on_state(state)
        except Exception as e:
            self._counters.handler_failed(e)
