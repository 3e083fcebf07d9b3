"""Transport over ZeroMQ: opens sockets in one context, hands them to listeners and connections."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket as system_socket

import zmq

from helix_mq.transport.api import DisconnectHandler, Handler, StateHandler
from helix_mq.transport.endpoints import BadEndpoint, EndpointUnavailable, require_security
from helix_mq.transport.limits import DEFAULT_LIMITS, Limits
from helix_mq.transport.options import (
    apply_client_keys,
    apply_dialling,
    apply_domain,
    apply_limits,
    apply_server_keys,
)
from helix_mq.transport.security import ClientSecurity, ServerSecurity
from helix_mq.transport.statistics import Counters
from helix_mq.transport.zap import ZapHandler
from helix_mq.transport.zmq_connection import MAX_NAME_BYTES, ZmqConnection
from helix_mq.transport.zmq_listener import ZmqListener

_IN_USE = "the address is in use"
_ZMQ_ERRORS = 156384712  # ZMQ_HAUSNUMERO in zmq.h
_SCHEMES = frozenset({"tcp", "ipc"})


class ZmqTransport:
    """One ZeroMQ context. Belongs to the event loop it is first used on.

    io_threads: threads that move bytes, and encrypt them where keys are in use. Measured on the
        loopback of a 2-core machine, one carries 2 GB/s in the clear and 0.6 GB/s with keys.
    """

    def __init__(self, io_threads: int = 1) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads)
        self._zap: ZapHandler | None = None
        self._channels: list[tuple[ZmqListener | ZmqConnection, str]] = []
        self._domains = itertools.count(1)
        self._closed = False

    async def listen(
        self,
        endpoint: str,
        handler: Handler,
        *,
        limits: Limits = DEFAULT_LIMITS,
        security: ServerSecurity | None = None,
        insecure: bool = False,
        on_disconnect: DisconnectHandler | None = None,
    ) -> ZmqListener:
        """See Transport.listen."""
        require_security(endpoint, security is not None, insecure, _SCHEMES)
        if endpoint.startswith("ipc://") and _ipc_in_use(endpoint.removeprefix("ipc://")):
            raise EndpointUnavailable(f"cannot listen on {endpoint}: {_IN_USE}", param="endpoint")
        counters = Counters(f"listener {endpoint}")
        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        try:
            apply_limits(socket, endpoint, limits)
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            allow = security.allow if security is not None else None
            domain = f"helix-mq-{next(self._domains)}"
            self._zap = self._zap or ZapHandler(self._context)
            self._zap.add_domain(domain, allow, counters)
            apply_domain(socket, domain)
            if security is not None:
                apply_server_keys(socket, security)
            listener = ZmqListener(socket, handler, limits, allow, on_disconnect, counters)
        except BaseException:
            socket.close(0)
            raise
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as e:
            await listener.close()
            raise EndpointUnavailable(
                f"cannot listen on {endpoint}: {_why(e)}", param="endpoint"
            ) from None
        listener.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._keep(listener, domain)
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
    ) -> ZmqConnection:
        """See Transport.connect."""
        require_security(endpoint, security is not None, insecure, _SCHEMES)
        if routing_id is not None and not 0 < len(routing_id) <= MAX_NAME_BYTES:
            raise BadEndpoint(
                f"routing_id of {len(routing_id)} bytes: must have 1 to {MAX_NAME_BYTES}",
                param="routing_id",
            )
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        try:
            apply_limits(socket, endpoint, limits)
            apply_dialling(socket, limits)
            if security is not None:
                apply_client_keys(socket, security)
            connection = ZmqConnection(
                socket,
                endpoint,
                handler,
                limits,
                name=routing_id,
                server=security.server_public if security is not None else None,
                on_state=on_state,
                counters=Counters(f"connection to {endpoint}"),
            )
        except zmq.ZMQError as e:
            socket.close(0)
            raise EndpointUnavailable(
                f"cannot connect to {endpoint}: {_why(e)}", param="endpoint"
            ) from None
        self._keep(connection, "")
        return connection

    async def close(self) -> None:
        """Closes every socket and waits, bounded by their `linger_s`, until all bytes are out."""
        if self._closed:
            return
        self._closed = True
        for channel, _ in self._channels:
            with contextlib.suppress(zmq.ZMQError):
                await channel.close()
        self._channels.clear()
        if self._zap is not None:
            self._zap.close()
        # Ends the I/O threads; blocks until lingering sockets are done, so not on the loop.
        await asyncio.to_thread(self._context.term)

    def _keep(self, channel: ZmqListener | ZmqConnection, domain: str) -> None:
        """Remembers an open channel, and forgets those that were closed since."""
        for other, done in self._channels:
            if other.closed and done and self._zap is not None:
                self._zap.remove_domain(done)
        self._channels = [kept for kept in self._channels if not kept[0].closed]
        self._channels.append((channel, domain))


def _ipc_in_use(path: str) -> bool:
    """Whether somebody answers there. ZeroMQ itself would take the address over without asking."""
    address = "\0" + path[1:] if path.startswith("@") else path
    with system_socket.socket(system_socket.AF_UNIX, system_socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except OSError as e:
            # A full queue of connections is an answer too; a file nobody listens to is not.
            return isinstance(e, BlockingIOError)
    return True


def _why(error: zmq.ZMQError) -> str:
    if error.errno == zmq.EADDRINUSE:
        return _IN_USE
    if error.errno == zmq.EADDRNOTAVAIL:
        return "this machine has no such address"
    # pyzmq's own text repeats the address; ZeroMQ's own numbers mean nothing to the system.
    own = error.errno is None or error.errno >= _ZMQ_ERRORS
    return str(error.strerror) if own else os.strerror(error.errno or 0).lower()
