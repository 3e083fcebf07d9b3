"""The client's link to the router: connects, keeps alive, says in words what is wrong.

The transport redials for as long as the link is open; this module decides how long that is worth
waiting for, and notices a router that is connected but does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from helix_mq.clock import Clock
from helix_mq.errors import ConnectionLost, FrameError, HelixError
from helix_mq.frames import decode, encode
from helix_mq.messages import client
from helix_mq.sdk.options import ClientOptions
from helix_mq.transport import (
    ClientSecurity,
    Connection,
    Delivery,
    Limits,
    LinkPhase,
    LinkState,
    Transport,
)

log = logging.getLogger(__name__)

_LIMITS = Limits(
    max_message_bytes=8 * 1024 * 1024, max_parts=4, backlog_messages=4096, redial_max_s=1.0
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the router is, and how it is to be reached."""

    endpoint: str
    security: ClientSecurity | None
    insecure: bool


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """What the link tells its owner. `lost`: the link is given up for now, and why."""

    up: Callable[[], None]
    down: Callable[[], None]
    lost: Callable[[HelixError], None]
    message: Callable[[msgspec.Struct], None]


class RouterLink:
    """`open` once, `close` once. All callbacks run on the event loop."""

    def __init__(
        self, address: Address, options: ClientOptions, events: LinkEvents, clock: Clock
    ) -> None:
        self._address = address
        self._options = options
        self._events = events
        self._clock = clock
        self._connection: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._give_up: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._reason = ""
        self._refused = False
        self._last_heard_s = 0.0
        self._sequence = 0
        self.up = False
        self.bad_messages = 0

    async def open(self, transport: Transport) -> None:
        """Connects. Raises ConnectionLost saying what to check, or ConfigError."""
        options = self._options
        self._connection = await transport.connect(
            self._address.endpoint,
            self._on_delivery,
            limits=_LIMITS,
            security=self._address.security,
            insecure=self._address.insecure,
            on_state=self._on_state,
        )
        await self._until_up(options.connect_timeout_s, stop_when_refused=True)
        self._keeper = asyncio.create_task(self._keep_alive(), name="client-keepalive")

    async def wait_up(self) -> None:
        """Returns at once while the link is up. Raises ConnectionLost if it does not come back."""
        if not self.up:
            await self._until_up(self._options.reconnect_timeout_s, stop_when_refused=False)

    async def _until_up(self, timeout_s: float, *, stop_when_refused: bool) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.up and not (stop_when_refused and self._refused):
                    self._changed.clear()
                    await self._changed.wait()
        if not self.up:
            raise self.unreachable(timeout_s)

    async def close(self) -> None:
        if self._give_up is not None:
            self._give_up.cancel()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()

    def send(self, message: msgspec.Struct) -> bool:
        """False when the link takes no more now."""
        return self._connection is not None and self._connection.send(encode(message))

    def unreachable(self, waited_s: float) -> ConnectionLost:
        """Why there is no connection, and what to look at."""
        endpoint = self._address.endpoint
        if self._refused and self._address.security is None:
            return ConnectionLost(
                f"{endpoint}: {self._reason}; this client has none: give it `key` and `server_key` "
                "(`--key NAME.key --server-key router.pub`), once the router allows NAME "
                "(`helix-mq keys allow NAME --client`)"
            )
        if self._refused:
            return ConnectionLost(
                f"{endpoint}: {self._reason}; check this client's key, that the router allows it "
                "(`helix-mq keys allow`), and the router's public key"
            )
        why = f" ({self._reason})" if self._reason else ""
        return ConnectionLost(
            f"no router at {endpoint} after {waited_s:.0f} s{why}: check that it runs, that this "
            "is its `clients` address, and that nothing in between blocks it"
        )

    def silent(self, waited_s: float) -> ConnectionLost:
        return ConnectionLost(
            f"{self._address.endpoint} is connected but has not answered for {waited_s:.0f} s: "
            "check that it is the router's `clients` address and that the router is well"
        )

    def _on_state(self, state: LinkState) -> None:
        self._reason = state.reason
        self._refused = state.phase is LinkPhase.REFUSED
        was_up, self.up = self.up, state.connected
        if self.up:
            self._last_heard_s = self._clock.now_s()
            if self._give_up is not None:
                self._give_up.cancel()
                self._give_up = None
            self._events.up()
        elif was_up:
            log.info("the link to %s is down: %s", self._address.endpoint, state.reason)
            self._events.down()
            wait_s = self._options.reconnect_timeout_s
            loop = asyncio.get_running_loop()
            self._give_up = loop.call_later(wait_s, self._still_down, wait_s)
        self._changed.set()

    def _still_down(self, waited_s: float) -> None:
        self._give_up = None
        self._events.lost(self.unreachable(waited_s))

    def _on_delivery(self, delivery: Delivery) -> None:
        self._last_heard_s = self._clock.now_s()
        try:
            message = decode(delivery.parts).header
        except FrameError as e:
            self.bad_messages += 1
            if self.bad_messages == 1:
                log.warning("bad message from %s: %s", self._address.endpoint, e)
            return
        if not isinstance(message, client.Keepalive):
            self._events.message(message)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._options.keepalive_s)
            if not self.up:
                continue
            silent_s = self._clock.now_s() - self._last_heard_s
            if silent_s > self._options.router_silent_s:
                self._events.lost(self.silent(silent_s))
            self._sequence += 1
            self.send(client.Keepalive(self._sequence))
