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
from zmq import zmq_poll

from helix_mq.transport.api import (
    Delivery,
    Handler,
    LinkPhase,
    LinkState,
    Parts,
    StateHandler,
)
from helix_mq.transport.backlog import Backlog, weigh
from helix_mq.transport.limits import Limits
from helix_mq.transport.monitor import Monitor, SocketEvent, SocketEventKind
from helix_mq.transport.pump import SLICE_MESSAGES, SLICE_S, Pump
from helix_mq.transport.refusals import LOST, Told
from helix_mq.transport.statistics import ChannelStatistics, Counters
from helix_mq.transport.wire import (
    MORE,
    NOBLOCK,
    LargeInFlight,
    raw_send,
    receive,
    say_here,
    try_send,
)

log = logging.getLogger(__name__)

_NONCE_BYTES = 8
MAX_NAME_BYTES = 200
_LOOK_AGAIN_S = 0.001


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
        self._in_flight = LargeInFlight(limits.backlog_bytes)
        self._raw_send = raw_send(socket)
        self._state: LinkState | None = None
        self._up = False
        self._lost = False
        self._ever_up = False
        self._failures = 0
        self._told = Told(keys=server is not None)
        self._redial: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._monitor = Monitor(socket, self._on_event, counters.where)
        self._pump = Pump(socket, self._step, counters.where)
        self._dial()

    def send(self, parts: Parts) -> bool:
        """See Connection.send."""
        nbytes, large = weigh(parts, self._limits)
        if self._up:
            if not self._backlog.waiting:
                if large:
                    went = self._send_now(parts, nbytes, large)
                else:
                    # The same for what nearly every message is, with two calls less.
                    went, send, last = True, self._raw_send, len(parts) - 1
                    try:
                        for at, part in enumerate(parts):
                            send(part, NOBLOCK if at == last else MORE)
                    except zmq.Again:
                        went = False
                    else:
                        self._counters.messages_out += 1
                        self._counters.bytes_out += nbytes
                if went:
                    # Sending may have taken a wake-up of the socket with it.
                    self._pump.look()
                    return True
            self._pump.poke()
        return not self._pump.stopped and self._backlog.offer(parts, nbytes, large)

    @property
    def closed(self) -> bool:
        return self._pump.stopped

    def statistics(self) -> ChannelStatistics:
        return self._counters.statistics(
            backlog_messages=len(self._backlog.waiting),
            backlog_bytes=self._backlog.nbytes + self._in_flight.nbytes,
        )

    async def close(self) -> None:
        if self._pump.stopped:
            return
        if self._up:
            self._flush()
        self._pump.stop()
        for timer in (self._redial, self._looking):
            if timer is not None:
                timer.cancel()
        self._monitor.close()
        self._socket.close()
        self._up = False
        self._drop_backlog("closed")

    def _send_now(self, parts: Parts, nbytes: int, large: int) -> bool:
        if large and not self._in_flight.has_room(large):
            return False
        try:
            try_send(self._raw_send, parts, large, self._in_flight)
        except zmq.Again:
            return False
        counters = self._counters
        counters.messages_out += 1
        counters.bytes_out += nbytes
        return True

    def _flush(self) -> bool:
        """Sends what waits, a slice of it at most; True when there is more to do at once."""
        backlog = self._backlog
        for _ in range(SLICE_MESSAGES):
            if not backlog.waiting:
                break
            parts, nbytes, large = backlog.waiting[0]
            if not self._in_flight.has_room(large):
                # ZeroMQ does not tell when it has let go of our memory, so look again soon.
                self._look_again()
                break
            if not self._send_now(parts, nbytes, large):
                break
            backlog.pop()
        else:
            return True
        # The sends may have read news from the socket's mailbox that nobody will announce again.
        events = int(self._socket.getsockopt(zmq.EVENTS))
        blocked_by_zmq = backlog.waiting and self._looking is None
        return bool(events & (zmq.POLLIN | zmq.POLLOUT if blocked_by_zmq else zmq.POLLIN))

    def _look_again(self) -> None:
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_AGAIN_S, self._looked)

    def _looked(self) -> None:
        self._looking = None
        self._pump.poke()

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
        return self._up and bool(self._backlog.waiting) and self._flush()

    def _drain(self) -> bool:
        pump = self._pump
        reads = pump.reads
        if pump.poked and not zmq_poll(reads, 0):
            return False
        until = 0.0
        counters = self._counters
        recv = self._socket.recv
        for i in range(SLICE_MESSAGES):
            # Mostly there is one message; two are often followed by more.
            if i:
                if pump.stopped or (i == 1 and not zmq_poll(reads, 0)):
                    return False
                now_s = time.perf_counter()
                if not until:
                    until = now_s + SLICE_S
                elif now_s > until:
                    return True
            try:
                parts, nbytes, _, fault = receive(recv, self._limits)
            except zmq.Again:
                return False
            if fault:
                counters.drop(fault, self._endpoint)
                continue
            counters.messages_in += 1
            counters.bytes_in += nbytes
            try:
                self._handler(Delivery(b"", self._server, parts, nbytes))
            except Exception as e:
                counters.handler_failed(e)
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
                refusal = self._told.of(event.refusal)
                self._counters.handshake_failed(refusal)
                self._hang_up(LinkState(LinkPhase.REFUSED, refusal.sentence))
            case _:
                pass

    def _ready(self) -> None:
        if self._ever_up:
            self._counters.reconnects += 1
        self._ever_up = self._up = True
        self._failures = 0
        self._told.let_in()
        say_here(self._raw_send)
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
