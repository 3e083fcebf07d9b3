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
