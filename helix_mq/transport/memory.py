"""The transport's twin within one process: same guarantees, no sockets, no threads.

Messages of all links arrive in the order in which they were sent, on later turns of the loop, so
runs repeat exactly. Addresses are `mem://NAME`; `mem://NAME:0` gets a number. Keys are compared,
not used. Transports share nothing: ends meet only within one MemoryTransport.
"""

from __future__ import annotations

import itertools

from helix_mq.transport.api import DisconnectHandler, Handler, StateHandler
from helix_mq.transport.endpoints import EndpointUnavailable, require_security
from helix_mq.transport.limits import DEFAULT_LIMITS, Limits
from helix_mq.transport.memory_ends import Courier, MemoryConnection, MemoryListener
from helix_mq.transport.security import ClientSecurity, ServerSecurity
from helix_mq.transport.statistics import Counters

_SCHEMES = frozenset({"mem"})


class MemoryTransport:
    def __init__(self) -> None:
        self._courier = Courier()
        self._listeners: dict[str, MemoryListener] = {}
        self._connections: list[MemoryConnection] = []
        self._ports = itertools.count(1)
        self._ids = itertools.count(1)

    async def listen(
        self,
        endpoint: str,
        handler: Handler,
        *,
        limits: Limits = DEFAULT_LIMITS,
        security: ServerSecurity | None = None,
        insecure: bool = False,
        on_disconnect: DisconnectHandler | None = None,
    ) -> MemoryListener:
        """See Transport.listen."""
        require_security(endpoint, security is not None, insecure, _SCHEMES)
        if endpoint.endswith(":0"):
            endpoint = f"{endpoint[:-2]}:{next(self._ports)}"
        if self._open_listener(endpoint) is not None:
            raise EndpointUnavailable(
                f"cannot listen on {endpoint}: the address is in use", param="endpoint"
            )
        listener = MemoryListener(
            endpoint, handler, limits, security, on_disconnect, Counters(f"listener {endpoint}")
        )
        self._listeners[endpoint] = listener
        for connection in list(self._connections):
            connection.listener_appeared(endpoint)
        return listener

    async def connect(
        self,
        endpoint: str,
        handler: Handler,
        *,
        routing_id: bytes | None = None,
        limits: Limits = DEFAULT_LIMITS,
        security: ClientSecurity | None = None,
        insecure: bool = False,
        on_state: StateHandler | None = None,
    ) -> MemoryConnection:
        """See Transport.connect."""
        require_security(endpoint, security is not None, insecure, _SCHEMES)
        connection = MemoryConnection(
            endpoint,
            handler,
            limits,
            security,
            on_state,
            Counters(f"connection to {endpoint}"),
            courier=self._courier,
            find=self._open_listener,
            new_id=lambda: (routing_id or b"\0") + next(self._ids).to_bytes(8, "big"),
        )
        self._connections = [c for c in self._connections if not c.closed] + [connection]
        return connection

    async def close(self) -> None:
        """Closes every end that is still open."""
        for connection in self._connections:
            await connection.close()
        for listener in self._listeners.values():
            await listener.close()
        self._connections.clear()
        self._listeners.clear()

    def _open_listener(self, endpoint: str) -> MemoryListener | None:
        listener = self._listeners.get(endpoint)
        return listener if listener is not None and not listener.closed else None
