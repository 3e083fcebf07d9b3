"""The sending end of one data link: two lines, credit, pacing, counts.

Frames wait here, never in ZeroMQ: decodes before prompt chunks, all of them for the receiver's
credit, chunks also for their turn on the wire (pacing). Large chunks leave in pieces, so that a
decode never waits for more than one of them. Of small frames of decodes the first in a turn of the
event loop goes at once, and those that follow it in the same turn leave as one frame at its end.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from helix_mq.clock import Clock
from helix_mq.credit import CreditSender
from helix_mq.foreseen import PackedHeader
from helix_mq.frames import FRAME_HEAD, Buffer, encode, frame_bytes, split_frame
from helix_mq.gathering import SMALL_BYTES, Gathering, is_small
from helix_mq.link_probe import PADDING_BYTES, SLOWEST_BYTES_PER_S, LinkProbes
from helix_mq.link_queue import LinkQueue
from helix_mq.messages.control import LinkReport
from helix_mq.messages.data import SAMPLE, VERIFY, FrameHeader, Grant, LinkEcho, LinkProbe
from helix_mq.pacing import FIRST_PIECE_BYTES, QUEUE_S, LinkPacer
from helix_mq.packing import PACK
from helix_mq.transport import Connection

MIN_PIECE_BYTES = 32 * 1024
"""Smaller pieces would cost more in headers and steps than they save in waiting."""

_FLUSH_FRAMES = 16
"""Sent at once of what waited: a fraction of a millisecond of the event loop's time."""

Soon = Callable[[Callable[[], None]], object]
"""Calls what it is given on the event loop's next turn."""

_PADDING = os.urandom(PADDING_BYTES)
"""Random: tunnels may compress."""


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer's data socket is; `incarnation` tells a restarted peer from its predecessor."""

    name: str
    incarnation: int
    endpoint: str
    public_key: str = ""


@dataclass(frozen=True, slots=True)
class OutLinkStatistics:
    peer: str
    sent_bytes: int
    sent_frames: int
    backlog_bytes: int
    blocked_s: float
    bytes_per_s: float
    """The best at which its bytes were acknowledged lately; 0 where nothing was."""
    round_trip_s: float
    """The shortest lately; 0 where none was seen."""
    down_s: float = 0.0
    """For how long it has been unconnected; 0 while it is connected."""
    probed_bytes_per_s: float = 0.0
    """What it can carry, by probes; 0 where none were lately."""

    def report(self) -> LinkReport:
        return LinkReport(
            self.peer,
            self.sent_bytes,
            self.sent_frames,
            self.backlog_bytes,
            self.blocked_s,
            self.down_s,
            self.bytes_per_s,
            self.round_trip_s,
            self.probed_bytes_per_s,
        )


def is_urgent(header: FrameHeader) -> bool:
    """True if every row is a decode, as far as a header tells."""
    # A loop: a generator costs more than the rows of most frames. `Row.is_decode` in place, as in
    # `gathering.is_small`.
    for row in header.rows:
        flags = row.flags
        if (row.count != 1 and not flags & VERIFY) or not flags & SAMPLE or row.position <= 0:
            return False
    return True


class OutLink:
    """The sending end towards one peer."""

    def __init__(self, address: PeerAddress, clock: Clock, window: int, soon: Soon) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.link = 0
        self._clock = clock
        self._down_since_s: float | None = clock.now_s()
        self._window = window
        self._credit = CreditSender(window_bytes=window, clock=clock)
        self._probes = LinkProbes(clock)
        self._pacer = LinkPacer(clock, self._probed)
        self.silent = False
        """Given up for want of a sign of life, though the connection stands."""
        self._queue: LinkQueue[list[Buffer]] = LinkQueue()
        self._soon = soon
        self._gathered = Gathering()
        self._gathers = False
        """A small frame has gone in this turn of the loop."""
        self._flush_due = False
        self._sent_bytes = 0
        self._sent_frames = 0

    @property
    def connected(self) -> bool:
        return self._down_since_s is None

    @connected.setter
    def connected(self, now: bool) -> None:
        if now:
            self._down_since_s = None
        elif self._down_since_s is None:
            self._down_since_s = self._clock.now_s()

    @property
    def down_s(self) -> float:
        """Seconds since it was last connected, or was made if it never was; 0 while it is."""
        return self._clock.now_s() - self._down_since_s if self._down_since_s is not None else 0.0

    def hopeless(self, after_s: float) -> bool:
        """Frames wait for a link that has been down for longer than `after_s`."""
        return len(self._queue) > 0 and self.down_s > after_s

    def give_up(self) -> None:
        """Drops what waits; the connection's counts stay."""
        self._queue.clear()
        self._gathered.clear()

    def begin(self, link: int) -> None:
        """A new connection: fresh counts. Frames that wait for it go when credit comes."""
        self.link = link
        self._credit = CreditSender(window_bytes=self._window, clock=self._clock)
        self._pacer = LinkPacer(self._clock, self._probed)
        self._probes = LinkProbes(self._clock, random.Random(link))
        self.silent = False

    def lose(self) -> None:
        """The connection broke, or does not come about: what was in it is lost, so what waited
        behind it goes too."""
        self.link = 0
        self.silent = False
        self.give_up()

    def send(self, header: FrameHeader, buffers: Sequence[Buffer]) -> None:
        """Puts a frame in line, in pieces where it is a large one."""
        if self._gathered.nbytes and self._gathered.joins(header, buffers):
            # Many that follow each other: nobody can be in line before those that are gathered.
            return
        small = is_small(header, buffers)
        if small:
            if not self._gathers:
                # The first of its turn goes at once.
                self._gathers = True
                self._soon(self._turn_ends)
            elif self._gathers_too(header, buffers[0]):
                return
        if small or is_urgent(header):
            if self._gathered.nbytes:
                self.leave()
            self._enqueue(header, buffers, urgent=True)
        else:
            self.leave()
            for piece, parts in split_frame(header, buffers, self._piece_bytes()):
                self._enqueue(piece, parts, urgent=False)
        if self._queue.waiting_bytes:
            self.flush()

    def send_decodes(self, header: PackedHeader, buffers: Sequence[Buffer]) -> None:
        """As send(), of a frame of decodes whose header is packed."""
        small = buffers[0].nbytes if type(buffers[0]) is memoryview else len(buffers[0])
        if small <= SMALL_BYTES and (self._gathers or self._gathered.nbytes):
            # It may go with others.
            self.send(header.header(), buffers)
            return
        if self._gathered.nbytes:
            self.leave()
        if small <= SMALL_BYTES:
            self._gathers = True
            self._soon(self._turn_ends)
        self._enqueue(header, buffers, urgent=True)
        if self._queue.waiting_bytes:
            self.flush()

    def _gathers_too(self, header: FrameHeader, payload: Buffer) -> bool:
        """Keeps a small frame until the turn's end, if nobody is in line before it."""
        if self._queue.waiting_bytes:
            return False
        if not self._gathered.add(header, payload):
            self.leave()
            return self._gathered.add(header, payload)
        return True

    def _turn_ends(self) -> None:
        self._gathers = False
        if self._gathered.nbytes:
            self.leave()

    def leave(self) -> None:
        """Has what was gathered go now, as one frame."""
        if self._gathered.nbytes:
            self._enqueue(*self._gathered.take(), urgent=True)
            if self._queue.waiting_bytes:
                self.flush()

    def _piece_bytes(self) -> int:
        least = MIN_PIECE_BYTES if self._pacer.measured else FIRST_PIECE_BYTES
        return max(least, int(self._pacer.carries_bytes_per_s * QUEUE_S / 2))

    def _probed(self) -> float:
        return self._probes.bytes_per_s

    def _enqueue(
        self, header: FrameHeader | PackedHeader, buffers: Sequence[Buffer], *, urgent: bool
    ) -> None:
        # `encode` and `frame_bytes` in place: each of the few calls here is one per frame.
        packed = header.packed if type(header) is PackedHeader else PACK(header)
        parts: list[Buffer] = [FRAME_HEAD, packed, *buffers]
        nbytes = len(FRAME_HEAD) + len(packed)
        for buffer in buffers:
            nbytes += buffer.nbytes if type(buffer) is memoryview else len(buffer)
        # Most find nobody in line before them.
        connection = self.connection
        if (
            not self._queue.waiting_bytes
            and connection is not None
            and self._down_since_s is None
            and (urgent or self._pacer.allows(nbytes))
            and self._credit.may_send(nbytes)
            and connection.send(parts)
        ):
            # `_went` in place.
            self._credit.sent(nbytes)
            self._pacer.sent(nbytes)
            self._sent_bytes += nbytes
            self._sent_frames += 1
            return
        if isinstance(header, PackedHeader):
            header = header.header()
        keys = [(row.request, row.attempt) for row in header.rows]
        self._queue.push(parts, nbytes, keys, urgent=urgent)

    def granted(self, grant: Grant) -> None:
        if grant.link != self.link:
            return
        probes = self._probes
        probes.heard()
        if self.silent:
            self._revive()
        self._credit.granted(grant.total_bytes, grant.link)
        self._pacer.acknowledged(grant.received_bytes)
        if probes.train is not None:
            probes.acknowledged(grant.received_bytes, self._pacer.round_trip_s)
        if self._queue.waiting_bytes:
            self.flush()
        if probes.climbing:
            self._measure()

    def echoed(self, echo: LinkEcho) -> None:
        if echo.link == self.link:
            self._probes.heard()
            if self.silent:
                self._revive()
            trip_s = self._probes.echoed(echo.number)
            if trip_s is not None:
                self._pacer.tripped(trip_s)
            self.flush()

    def _revive(self) -> None:
        """There is somebody after all: counts still hold, as TCP loses nothing in between."""
        self.silent, self.connected = False, True

    def probe(self) -> None:
        """Asks for a sign of life, and measures the link if that is due and it has next to nothing
        to do. Receivers tell of less than PADDING_BYTES once a second only, so a link that carries
        a few decodes at a time counts as idle, or it would never be measured."""
        if self.connection is None or not self.connected:
            return
        number = self._probes.next_probe()
        if number is not None:
            self.connection.send(encode(LinkProbe(self.link, number)))
        self._measure()

    def _measure(self) -> None:
        idle = len(self._queue) == 0 and self._pacer.under_way_bytes <= PADDING_BYTES
        if self.connected and idle:
            self._send_train(self._probes.train_pieces())

    def _send_train(self, pieces: int) -> None:
        parts = encode(LinkProbe(self.link, 0), (_PADDING,))
        nbytes = frame_bytes(parts)
        # Half of it: frames must find credit meanwhile.
        if self.connection is None or not pieces or self._credit.headroom_bytes < 2 * nbytes:
            return
        start, delivered = self._pacer.sent_bytes, self._pacer.delivered_bytes
        for _ in range(min(pieces, self._credit.headroom_bytes // (2 * nbytes))):
            if not self.connection.send(list(parts)):
                break
            self._credit.sent(nbytes)
            self._pacer.sent(nbytes)
        if self._pacer.sent_bytes > start:
            self._probes.train_sent(start, self._pacer.sent_bytes, delivered)

    def fall_silent(self, after_s: float) -> bool:
        """Gives the link up if nothing has been heard of it for too long; True if that was so.

        Ask about once a second. The connection stays: what comes over it revives the link.
        """
        if not self.connected:
            return False
        silent_s = self._probes.silent_s()
        rate = max(self._probes.bytes_per_s or self._pacer.bytes_per_s, SLOWEST_BYTES_PER_S)
        if silent_s <= after_s + self._pacer.under_way_bytes / rate:
            return False
        self.give_up()
        self.silent = True
        self._down_since_s = self._clock.now_s() - silent_s
        return True

    def flush(self) -> None:
        """Sends what may go now of what waits; goes on in the loop's next turn where that is
        much."""
        self._flush(paced=True)

    def _flush_more(self) -> None:
        self._flush_due = False
        self._flush(paced=True)

    def _flush(self, *, paced: bool) -> None:
        allows = self._pacer.allows if paced else _always
        for _ in range(_FLUSH_FRAMES):
            if self.connection is None or not self.connected:
                return
            found = self._queue.next_frame(self._credit.may_send, allows)
            if found is None:
                return
            parts, nbytes = found
            if not self.connection.send(parts):
                return
            self._queue.sent()
            self._went(nbytes)
        if not self._flush_due:
            self._flush_due = True
            self._soon(self._flush_more)

    def _went(self, nbytes: int) -> None:
        self._credit.sent(nbytes)
        self._pacer.sent(nbytes)
        self._sent_bytes += nbytes
        self._sent_frames += 1

    @property
    def blocked(self) -> bool:
        """New prefill had better wait: decodes wait here, or a piece has another one before it."""
        queue = self._queue
        return queue.waiting_bytes > 0 and (queue.urgent_frames > 0 or queue.bulk_frames > 1)

    def overdraft(self) -> None:
        """Lets one waiting frame go without credit: breaks a cyclic wait between nodes."""
        if len(self._queue):
            self._credit.overdraft()
            self._flush(paced=False)

    def statistics(self) -> OutLinkStatistics:
        return OutLinkStatistics(
            peer=self.address.name,
            sent_bytes=self._sent_bytes,
            sent_frames=self._sent_frames,
            backlog_bytes=self._queue.waiting_bytes + self._gathered.nbytes,
            blocked_s=self._credit.blocked_s,
            bytes_per_s=self._pacer.bytes_per_s,
            round_trip_s=self._pacer.round_trip_s,
            down_s=self.down_s,
            probed_bytes_per_s=self._probes.bytes_per_s,
        )


def _always(nbytes: int) -> bool:
    return True
