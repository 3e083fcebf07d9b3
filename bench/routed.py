"""A transport whose calls take other ways than the endpoints they name: through relays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from helix_mq.transport import (
    ClientSecurity,
    Connection,
    DisconnectHandler,
    Handler,
    Limits,
    Listener,
    ServerSecurity,
    StateHandler,
    Transport,
)
from helix_mq.transport.limits import DEFAULT_LIMITS

Way = Callable[[str], Awaitable[str]]
"""Endpoint as it is named -> where to dial instead."""


class RoutedTransport:
    """`inner` as ever, but what is dialled goes `way`; `bound` is told of each real endpoint that
    was bound. Closes nothing: `inner` is its owner's, and may be shared."""

    def __init__(
        self, inner: Transport, way: Way, bound: Callable[[str], None] | None = None
    ) -> None:
        self._inner = inner
        self._way = way
        self._bound = bound

    async def listen(
        self,
        endpoint: str,
        handler: Handler,
        *,
        limits: Limits = DEFAULT_LIMITS,
        security: ServerSecurity | None = None,
        insecure: bool = False,
        on_disconnect: DisconnectHandler | None = None,
    ) -> Listener:
        listener = await self._inner.listen(
            endpoint,
            handler,
            limits=limits,
            security=security,
            insecure=insecure,
            on_disconnect=on_disconnect,
        )
        if self._bound is not None:
            self._bound(listener.endpoint)
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
    ) -> Connection:
        return await self._inner.connect(
            await self._way(endpoint),
            handler,
            routing_id=routing_id,
            limits=limits,
            security=security,
            insecure=insecure,
            on_state=on_state,
        )

    async def close(self) -> None:
        """Nothing here is open."""
