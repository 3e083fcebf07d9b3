"""Socket options: limits, liveness and keys, the same for bound and connecting sockets."""

from __future__ import annotations

import socket as system_socket

import zmq

from helix_mq.transport.limits import Limits
from helix_mq.transport.security import ClientSecurity, ServerSecurity

_KEEPALIVE_IDLE_S = 30
_KEEPALIVE_INTERVAL_S = 10
_KEEPALIVE_PROBES = 3


def wants_ipv6(endpoint: str) -> bool:
    """Whether to open an IPv6 socket: for bracketed hosts, and for `*` where the machine can.

    Names are looked up as IPv4: ZeroMQ tries one address only, and a host with both kinds often
    listens on IPv4 alone.
    """
    if endpoint.startswith("tcp://["):
        return True
    return endpoint.startswith("tcp://*:") and _has_ipv6()


def _has_ipv6() -> bool:
    if not system_socket.has_ipv6:
        return False
    try:
        # Containers often have the protocol but no way to open it.
        with system_socket.socket(system_socket.AF_INET6, system_socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def apply_limits(socket: zmq.Socket[bytes], endpoint: str, limits: Limits) -> None:
    """Bounds and liveness. ZeroMQ sets TCP_NODELAY itself."""
    for option, value in (
        (zmq.LINGER, _ms(limits.linger_s)),
        (zmq.MAXMSGSIZE, limits.max_message_bytes),
        (zmq.SNDHWM, limits.send_queue_messages),
        (zmq.RCVHWM, limits.receive_queue_messages),
        (zmq.HANDSHAKE_IVL, _ms(limits.handshake_s)),
        (zmq.HEARTBEAT_IVL, _ms(limits.heartbeat_s)),
        (zmq.HEARTBEAT_TIMEOUT, _ms(limits.dead_after_s)),
        # Tells the peer to give us up as well, should its own settings be laxer (unit: 100 ms).
        (zmq.HEARTBEAT_TTL, min(_ms(limits.dead_after_s), 6_553_500)),
        (zmq.TCP_MAXRT, _ms(limits.dead_after_s)),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, _KEEPALIVE_IDLE_S),
        (zmq.TCP_KEEPALIVE_INTVL, _KEEPALIVE_INTERVAL_S),
        (zmq.TCP_KEEPALIVE_CNT, _KEEPALIVE_PROBES),
        (zmq.IPV6, int(wants_ipv6(endpoint))),
    ):
        socket.setsockopt(option, value)


def apply_dialling(socket: zmq.Socket[bytes], limits: Limits) -> None:
    """For connecting sockets: pauses between attempts, and no queue without a connection."""
    socket.setsockopt(zmq.RECONNECT_IVL, _ms(limits.redial_s))
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _ms(limits.redial_max_s))
    socket.setsockopt(zmq.CONNECT_TIMEOUT, _ms(limits.handshake_s))
    # Else frames of a broken connection would arrive on the next one, before any greeting.
    socket.setsockopt(zmq.IMMEDIATE, 1)


def apply_domain(socket: zmq.Socket[bytes], domain: str) -> None:
    """Has the ZAP handler asked about everybody, and lets nobody in without its answer."""
    socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode("ascii"))
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def apply_server_keys(socket: zmq.Socket[bytes], security: ServerSecurity) -> None:
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, security.key.secret.encode("ascii"))


def apply_client_keys(socket: zmq.Socket[bytes], security: ClientSecurity) -> None:
    socket.setsockopt(zmq.CURVE_SERVERKEY, security.server_public.strip().encode("ascii"))
    socket.setsockopt(zmq.CURVE_PUBLICKEY, security.key.public.encode("ascii"))
    socket.setsockopt(zmq.CURVE_SECRETKEY, security.key.secret.encode("ascii"))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
