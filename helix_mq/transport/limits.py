"""Bounds and timings of one socket. Every queue and size of the transport is limited here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from helix_mq.errors import LocalError


class MessageTooLarge(LocalError):
    """A message to be sent breaks the sender's own limits; the peer would cut the connection."""

    code = "message_too_large"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a socket.

    max_message_bytes: of one message, both ways, and of each part before it is read. A peer that
        announces a larger part is cut off; a larger sum is dropped and counted.
    max_parts: parts per message, both ways. ZeroMQ has no such limit: it holds all parts of a
        message before it hands over the first, so a peer that was let in can make it hold much.
    send_queue_messages, receive_queue_messages: ZeroMQ's high-water marks, per peer.
    backlog_messages, backlog_bytes: on a Connection, what waits here while ZeroMQ takes no more or
        the link is down. On a Listener, backlog_bytes bounds the large messages on their way to
        one peer; small ones are copied and bounded by send_queue_messages.
    linger_s: how long closing waits for what is queued.
    heartbeat_s: how often a silent peer is asked for a sign of life.
    dead_after_s: silence after which a connection is given up. Answers queue behind the message in
        transfer, so it must exceed the time max_message_bytes really takes on the slowest link.
    handshake_s: time a new connection has to prove who it is.
    max_connections: of a Listener, the handshaking ones included; one more is cut at once.
    max_silent: of these, how many may not have said anything yet; the one that has been silent for
        longest gives way, so that a flood of silent ones does not lock honest ones out.
    redial_s, redial_max_s: first and longest pause between attempts to connect. A router that
        restarts serves again only when its nodes have noticed.
    """

    max_message_bytes: int = 256 * 1024 * 1024
    max_parts: int = 16
    send_queue_messages: int = 1000
    receive_queue_messages: int = 1000
    backlog_messages: int = 10_000
    backlog_bytes: int = 256 * 1024 * 1024
    linger_s: float = 1.0
    heartbeat_s: float = 3.0
    dead_after_s: float = 15.0
    handshake_s: float = 10.0
    max_connections: int = 8192
    max_silent: int = 1024
    redial_s: float = 0.05
    redial_max_s: float = 1.0

    def __post_init__(self) -> None:
        for name in (
            "max_message_bytes",
            "max_parts",
            "send_queue_messages",
            "receive_queue_messages",
            "backlog_messages",
            "backlog_bytes",
            "heartbeat_s",
            "dead_after_s",
            "handshake_s",
            "max_connections",
            "max_silent",
            "redial_s",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be greater than 0")
        if self.redial_max_s < self.redial_s:
            raise ValueError(f"redial_max_s = {self.redial_max_s}: less than redial_s")

    def refuse(self, parts: int, nbytes: int) -> NoReturn:
        """Says which limit an outgoing message breaks. Raises MessageTooLarge."""
        if not 0 < parts <= self.max_parts:
            raise MessageTooLarge(
                f"a message of {parts} parts; allowed are 1 to {self.max_parts} (max_parts)"
            )
        raise MessageTooLarge(
            f"a message of {nbytes} bytes; the limit is {self.max_message_bytes} "
            "(max_message_bytes)"
        )


DEFAULT_LIMITS = Limits()
