"""Answers ZeroMQ's question "may this key in?" (ZAP, RFC 27) from the listeners' allow-lists.

One handler per context. Own code rather than pyzmq's AsyncioAuthenticator, which watches its socket
through zmq.asyncio in a task of its own and takes keys from folders: here the same pump drains it
as every other socket, each listener's domain has its live AllowList, and refusals are counted.
Anything malformed is refused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import zmq
from zmq.utils import z85

from helix_mq.transport.pump import SLICE_MESSAGES, Pump
from helix_mq.transport.refusals import NOT_ALLOWED
from helix_mq.transport.security import AllowList, fingerprint
from helix_mq.transport.statistics import Counters

log = logging.getLogger(__name__)

_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"


@dataclass(frozen=True, slots=True)
class _Domain:
    allow: AllowList
    counters: Counters


class ZapHandler:
    """Must exist before the first listener with keys binds; such listeners admit nobody else."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._domains: dict[bytes, _Domain] = {}
        self._socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        # Bounded by the handshakes in progress, which ZeroMQ times out itself.
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(_ENDPOINT)
        self._pump = Pump(self._socket, self._step, "key checks")

    def add_domain(self, domain: str, allow: AllowList, counters: Counters) -> None:
        """Has the handshakes of the listener with this domain checked against `allow`."""
        self._domains[domain.encode("ascii")] = _Domain(allow, counters)

    def remove_domain(self, domain: str) -> None:
        self._domains.pop(domain.encode("ascii"), None)

    def close(self) -> None:
        self._pump.stop()
        self._socket.close()

    def _step(self) -> bool:
        for _ in range(SLICE_MESSAGES):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._answer(parts)
            # The answer may have taken a wake-up with it.
            self._pump.poke()
        return True

    def _answer(self, parts: list[bytes]) -> None:
        if len(parts) < 4 or parts[1] != b"":
            return
        peer, _, version, request = parts[:4]
        status, text, user = b"500", b"malformed request", b""
        if version == _VERSION and len(parts) == 9 and parts[7] == b"CURVE" and len(parts[8]) == 32:
            user = z85.encode(parts[8])
            status, text = self._judge(parts[4], parts[5], user.decode("ascii"))
        if status != b"200":
            user = b""
        reply = [peer, b"", _VERSION, request, status, text, user, b""]
        self._socket.send_multipart(reply, zmq.NOBLOCK)

    def _judge(self, domain: bytes, address: bytes, public: str) -> tuple[bytes, bytes]:
        found = self._domains.get(domain)
        if found is None:
            return b"400", b"no such domain"
        if public in found.allow:
            return b"200", b"OK"
        mark = fingerprint(public)
        found.counters.handshake_failed(
            NOT_ALLOWED,
            who=mark,
            detail=f"refused the key with fingerprint {mark} from {address.decode('latin1')}: it "
            f"is not on the allow-list; `helix-mq keys allow` adds it. Public key: {public}",
        )
        return b"400", b"key not allowed"
