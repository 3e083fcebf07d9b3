"""Sockets and messages that the plain systems share."""

from __future__ import annotations

import os

import zmq

from bench.bus.types import HEADER_BYTES, Spec
from helix_mq.transport.backlog import COPY_BELOW_BYTES

Part = bytes | memoryview | zmq.Frame


def message_of(spec: Spec) -> list[Part]:
    """A message, the tensor last."""
    head: list[Part] = [b"\x01\x20", os.urandom(HEADER_BYTES)]
    return [*head[: spec.parts - 1], memoryview(bytearray(os.urandom(spec.size_bytes)))]


def is_large(part: Part) -> bool:
    """Whether it had better go without a copy: from the same size on as in our transport."""
    return (part.nbytes if isinstance(part, memoryview) else len(part)) >= COPY_BELOW_BYTES


def bound_socket(
    context: zmq.Context[zmq.Socket[bytes]], spec: Spec
) -> tuple[zmq.Socket[bytes], str]:
    """The receiving socket of a place, and its address."""
    socket = context.socket(zmq.PULL if spec.parts == 1 else zmq.ROUTER)
    _limit(socket, spec)
    if spec.keys:
        socket.curve_server = True
        socket.curve_secretkey = spec.keys[spec.place][1].encode()
    socket.bind(spec.endpoint)
    return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)


def connected_socket(
    context: zmq.Context[zmq.Socket[bytes]], spec: Spec, endpoint: str
) -> zmq.Socket[bytes]:
    """The sending socket of a place, to the next."""
    socket = context.socket(zmq.PUSH if spec.parts == 1 else zmq.DEALER)
    _limit(socket, spec)
    if spec.keys:
        public, secret = spec.keys[spec.place]
        socket.curve_publickey, socket.curve_secretkey = public.encode(), secret.encode()
        socket.curve_serverkey = spec.keys[(spec.place + 1) % spec.places][0].encode()
    socket.connect(endpoint)
    return socket


def _limit(socket: zmq.Socket[bytes], spec: Spec) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, spec.in_flight)
    socket.setsockopt(zmq.RCVHWM, spec.in_flight)
