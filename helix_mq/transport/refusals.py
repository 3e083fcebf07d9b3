"""Why a link is not there, in words: the same from every transport. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """`code` to count by, `sentence` for people."""

    code: str
    sentence: str


NOT_ALLOWED = Refusal("not_allowed", "handshake failed: this key is not on the peer's allow-list")
MECHANISM = Refusal("mechanism", "handshake failed: one side uses keys and the other does not")
HUNG_UP = Refusal(
    "hung_up",
    "handshake failed: the other side hung up; check the address, and that its public key is the "
    "configured one",
)
HUNG_UP_ON_PLAIN = Refusal(
    "hung_up",
    "handshake failed: the other side hung up on a side without keys; check the address, and "
    "whether it wants keys",
)
"""What a plain end sees, or MECHANISM, of one that wants keys: which comes first is luck."""
TOO_MANY = Refusal(
    "too_many",
    "a connection was cut: this socket has as many as it may have (max_connections)",
)
SILENT = Refusal(
    "silent",
    "a connection that had said nothing was cut to make room for newer ones (max_silent)",
)
TALKATIVE = Refusal(
    "talkative",
    "a connection was cut that had sent more than a handshake takes, and no message",
)
LOST = "the connection was lost"


def cannot_check(status: int) -> Refusal:
    return Refusal(
        "auth", f"handshake failed: the peer cannot check keys now (ZAP status {status})"
    )


def broken_protocol(code: int) -> Refusal:
    return Refusal(
        "protocol",
        f"handshake failed: the other side broke the protocol (ZeroMQ code {code:#x}); it may use "
        "another key pair, or not be ZeroMQ at all",
    )


HUNG_UPS_EXPLAINED = 20
"""So many in a row after a MECHANISM are taken for the same fault; then it may be another one."""


class Told:
    """What a dialling end says of refusals, so that one fault is not told as two in turn."""

    def __init__(self, *, keys: bool) -> None:
        self._hung_up = HUNG_UP if keys else HUNG_UP_ON_PLAIN
        self._explained = 0

    def of(self, refusal: Refusal) -> Refusal:
        if refusal is HUNG_UP:
            if not self._explained:
                return self._hung_up
            self._explained -= 1
            return MECHANISM
        self._explained = HUNG_UPS_EXPLAINED if refusal is MECHANISM else 0
        return refusal

    def let_in(self) -> None:
        self._explained = 0
