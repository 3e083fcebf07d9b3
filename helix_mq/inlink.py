"""The receiving end of one data link: what came and was consumed, and what its sender is told.

A sender is told twice over: of credit, when enough was consumed for that to be worth a message, and
of what has arrived, for its pace. The second may wait a little and then covers all links at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from helix_mq.clock import Clock
from helix_mq.credit import CreditReceiver
from helix_mq.errors import FrameError
from helix_mq.link_probe import ProbeAllowance
from helix_mq.messages.data import Grant, LinkEcho, LinkHello, LinkProbe
from helix_mq.transport import Delivery

DEFAULT_WINDOW_BYTES: Final = 64 * 1024 * 1024
"""Bytes in flight per link: 16 chunks of 256 tokens of a 70B model's 8,192 bf16 activations."""

ACKNOWLEDGE_BYTES: Final = 32 * 1024
"""A third of what a sender may have under way at least (pacing.MIN_WINDOW_BYTES). On fast links
frames are larger than that, so this is one small message per frame at most."""

ACKNOWLEDGE_EVERY_S: Final = 0.004
"""A fifth of what a sender may have under way (pacing.QUEUE_S). On fast links a decode's frame
comes sooner after the last one, and an acknowledgement costs nearly as much as a frame."""

_OVERDRAWN_WINDOWS: Final = 4
"""Room for a sender's own idea of the first window, and for overdrafts while all is blocked."""

Send = Callable[[bytes, msgspec.Struct], None]
"""(routing id, message): to who is connected under that id."""


class Answers:
    """How the in-links of a process answer. Acknowledgements of all links go together, after what
    came in this turn of the loop has been handled, as what is passed on need not wait for them;
    where the last ones were just now, once for all that comes till then."""

    def __init__(self, me: str, clock: Clock, send: Send) -> None:
        self.me = me
        self.clock = clock
        self.send = send
        self._links: list[InLink] = []
        self._told_at_s = -1.0
        """On the loop's clock."""

    def soon(self, link: InLink) -> None:
        """Has the link acknowledge. Ask once, until it has been called."""
        if not self._links:
            loop = asyncio.get_running_loop()
            wait_s = self._told_at_s + ACKNOWLEDGE_EVERY_S - loop.time()
            if wait_s > 0:
                loop.call_later(wait_s, self._tell)
            else:
                loop.call_soon(self._tell)
        self._links.append(link)

    def _tell(self) -> None:
        self._told_at_s = asyncio.get_running_loop().time()
        links, self._links = self._links, []
        for link in links:
            link.acknowledge()


class InLink:
    """The receiving end of one peer's connection: its credit, and how to answer it."""

    def __init__(self, delivery: Delivery, hello: LinkHello, window: int, answers: Answers) -> None:
        self.sender = hello.sender
        self.incarnation = hello.incarnation
        self.user = delivery.user
        self.routing_id = delivery.peer
        self.link = hello.link
        self._answers = answers
        self._credit = CreditReceiver(window_bytes=window, incarnation=hello.link)
        self._most_bytes = _OVERDRAWN_WINDOWS * max(window, DEFAULT_WINDOW_BYTES)
        self._told_bytes = 0
        self.overdrawn = False
        """With its last frame more lay here unconsumed than any sender that minds its credit could
        have sent."""
        self._due = False
        """An acknowledgement is asked for."""
        self._allowance = ProbeAllowance(answers.clock)

    def received(self, nbytes: int) -> None:
        """Counts a frame; has it acknowledged when enough has come for the sender's pace."""
        credit = self._credit
        # `credit.received` in place.
        credit.outstanding_bytes += nbytes
        credit.received_bytes += nbytes
        self.overdrawn = credit.outstanding_bytes > self._most_bytes
        if not self._due and credit.received_bytes - self._told_bytes >= ACKNOWLEDGE_BYTES:
            self._due = True
            self._answers.soon(self)

    def has_room(self, nbytes: int) -> bool:
        """Whether one that minds its credit may have sent so many bytes more."""
        return self._credit.outstanding_bytes + nbytes <= self._most_bytes

    def consumed(self, nbytes: int) -> None:
        """The bytes left the inbox: gives the sender credit back when that is worth a message."""
        if self._credit.consumed(nbytes):
            self.grant()

    def grant(self) -> None:
        """Tells of credit, if it is worth a message."""
        grant = self._credit.grant()
        if grant is not None:
            self._tell(grant.total_bytes)

    def acknowledge(self) -> None:
        """Tells of what has come since the last time."""
        self._due = False
        if self._credit.received_bytes != self._told_bytes:
            self.announce()

    def announce(self) -> None:
        """Tells of what has come, and repeats the present grant in case the last one was lost."""
        self._tell(self._credit.announce().total_bytes)

    def probed(self, probe: LinkProbe, nbytes: int, *, padded: bool) -> None:
        """Answers a probe, or counts its padding as received and consumed. FrameError where there
        are more of them than a sender has a use for."""
        if padded:
            # Also of what is refused: the sender counts these bytes as on their way, and would wait
            # for them for ever. Acknowledged one by one: their spacing is what is measured.
            self._credit.received(nbytes)
            if self._credit.received_bytes - self._told_bytes >= ACKNOWLEDGE_BYTES:
                self.announce()
            self.consumed(nbytes)
        if not self._allowance.take(nbytes if padded else 0):
            raise FrameError(f"{self.sender} probes too often", reason="probes")
        if not padded:
            self._answers.send(self.routing_id, LinkEcho(self.link, probe.number))

    def _tell(self, total_bytes: int) -> None:
        self._told_bytes = self._credit.received_bytes
        grant = Grant(self._answers.me, self.link, total_bytes, self._credit.received_bytes)
        self._answers.send(self.routing_id, grant)
