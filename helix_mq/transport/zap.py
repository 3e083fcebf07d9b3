"""Answers ZeroMQ's question "may this key in?" (ZAP, RFC 27) from the listeners' allow-lists.

One handler per context. Own code rather than pyzmq's AsyncioAuthenticator, which watches its socket
through zmq.asyncio in a task of its own and takes keys from folders: here the same pump drains it
as every other socket, each listener's domain has its live AllowList, and refusals are counted.
Anything malformed is refused.

Listeners without keys have a domain too, open to everybody: ZeroMQ then insists on a handshake of
ZMTP 3 and hangs up on older peers, which have none and turn any garbage into messages.
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
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class _Domain:
    allow: AllowList | None
    counters: Counters


class ZapHandler:
    """Must exist before the first listener binds: without its answer nobody gets in."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._domains: dict[bytes, _Domain] = {}
        self._socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        # Bounded by the handshakes in progress, which ZeroMQ times out itself.
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(_ENDPOINT)
        self._pump = Pump(self._socket, self._step, "key checks")

    def add_domain(self, domain: str, allow: AllowList | None, counters: Counters) -> None:
        """Has the listener of this domain checked against `allow`; None: no keys are asked for."""
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
        status, user = b"500", b""
        if version == _VERSION and len(parts) >= 8:
            domain, address, mechanism, proof = parts[4], parts[5], parts[7], parts[8:]
            found = self._domains.get(domain)
            if found is None:
                status = b"400"
            elif mechanism == b"NULL" and not proof and found.allow is None:
                status = b"200"
            elif mechanism == b"CURVE" and len(proof) == 1 and len(proof[0]) == _KEY_BYTES:
                public = z85.encode(proof[0])
                if self._judge(found, address, public.decode("ascii")):
                    status, user = b"200", public
                else:
                    status = b"400"
        self._socket.send_multipart(
            [peer, b"", _VERSION, request, status, b"", user, b""], zmq.NOBLOCK
        )

    def _judge(self, found: _Domain, address: bytes, public: str) -> bool:
        if found.allow is not None and public in found.allow:
            return True
        mark = fingerprint(public)
        found.counters.handshake_failed(
            NOT_ALLOWED,
            who=mark,
            detail=f"refused the key with fingerprint {mark} from {address.decode('latin1')}: it "
            f"is not on the allow-list; `helix-mq keys allow` adds it. Public key: {public}",
        )
        return False
