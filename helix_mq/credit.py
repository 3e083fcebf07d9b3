"""Credit between two ends of a link, in bytes: a slow receiver pushes back to its sender's batcher.

Pure; no I/O, no timers. Grants carry running totals (as QUIC's MAX_DATA does), so a lost, repeated
or overtaken grant does no harm: the highest total of the receiver's present incarnation counts.

Guarantees, with W the receiver's window and W0 the window the sender assumes before it has heard
of the receiver:
- bytes sent and not yet consumed never exceed max(W, W0) by more than one message, overdrafts
  aside; and they exceed it only by a message that found at most W/8 outstanding;
- whatever its size, a message may go once everything before it is consumed and granted.

Overdrafts. Routes may cross two nodes in both orders (A before B for one request, B before A for
another), so pushed-back prefill can form a cycle: A waits for room in B, B for room in A. A node
that is idle because all its rows wait for credit may therefore overdraw, by one message a second;
the caller keeps that pace. Each overdraft exceeds the window by one message, which is memory spent
on progress.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec

from helix_mq.clock import Clock

_REMEMBERED_INCARNATIONS = 8
_IDLE_SHARE = 8
"""When all is consumed, up to W/8 may stay ungranted: saves a grant per small frame."""


class Grant(msgspec.Struct, frozen=True, gc=False):
    """`total_bytes` may have been sent in all since this incarnation of the receiver began."""

    total_bytes: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class CreditStatistics:
    """blocked_s: time during which a message was refused for lack of credit, up to now."""

    sent_bytes: int
    headroom_bytes: int
    blocked: bool
    blocked_s: float
    times_blocked: int
    overdrafts: int


class CreditSender:
    """The sending end. One per connection: a new connection starts its counts at 0.

    window_bytes: credit assumed until the first grant, so that a new link need not wait for it.
    """

    def __init__(self, window_bytes: int, clock: Clock) -> None:
        _check_window(window_bytes)
        self._clock = clock
        self._sent_bytes = 0
        self._granted_bytes = window_bytes
        # The most headroom a grant has ever shown: never more than the receiver's window.
        self._widest_bytes = window_bytes
        self._incarnation: int | None = None
        self._retired: deque[int] = deque(maxlen=_REMEMBERED_INCARNATIONS)
        self._overdraft = False
        self._overdrafts = 0
        self._refused_bytes: int | None = None
        self._blocked_since_s = 0.0
        self._blocked_s = 0.0
        self._times_blocked = 0

    @property
    def headroom_bytes(self) -> int:
        """Bytes that may go now; negative after an oversize message or an overdraft."""
        return self._granted_bytes - self._sent_bytes

    @property
    def blocked_s(self) -> float:
        """Seconds in all during which a refused message waited, the present wait included."""
        waiting_s = 0.0
        if self._refused_bytes is not None:
            waiting_s = self._clock.now_s() - self._blocked_since_s
        return self._blocked_s + waiting_s

    def may_send(self, nbytes: int) -> bool:
        """Whether a message of `nbytes` may go now. A refusal starts the blocked time."""
        if self._refused_bytes is None and nbytes <= self._granted_bytes - self._sent_bytes:
            return True
        if self._allows(nbytes):
            self._unblock()
            return True
        if self._refused_bytes is None:
            self._blocked_since_s = self._clock.now_s()
            self._times_blocked += 1
        self._refused_bytes = nbytes
        return False

    def sent(self, nbytes: int) -> None:
        """Counts a message that went. Uses up an overdraft if one was needed."""
        if self._overdraft:
            self._overdrafts += not self._fits(nbytes)
            self._overdraft = False
        self._sent_bytes += nbytes
        if self._refused_bytes is not None:
            self._unblock()

    def granted(self, total_bytes: int, incarnation: int) -> bool:
        """Takes a grant in. True when it gave credit.

        A new incarnation is a receiver that started anew: counts begin again at 0. Late grants of
        earlier incarnations are ignored. What was sent between the two is not accounted for, so
        a connection that broke should rather get a new CreditSender.
        """
        if incarnation in self._retired:
            return False
        first = self._incarnation is None
        if not first and incarnation != self._incarnation:
            assert self._incarnation is not None
            self._retired.append(self._incarnation)
            self._sent_bytes = 0
            first = True
        if not first and total_bytes <= self._granted_bytes:
            return False
        self._incarnation = incarnation
        before = self._granted_bytes
        self._granted_bytes = total_bytes
        headroom = total_bytes - self._sent_bytes
        if first or headroom > self._widest_bytes:
            self._widest_bytes = max(0, headroom)
        if self._refused_bytes is not None and self._allows(self._refused_bytes):
            self._unblock()
        return first or total_bytes > before

    def overdraft(self) -> None:
        """Permits the next message whatever its size; see the module on cyclic waits."""
        self._overdraft = True

    def statistics(self) -> CreditStatistics:
        return CreditStatistics(
            sent_bytes=self._sent_bytes,
            headroom_bytes=self.headroom_bytes,
            blocked=self._refused_bytes is not None,
            blocked_s=self.blocked_s,
            times_blocked=self._times_blocked,
            overdrafts=self._overdrafts,
        )

    def _allows(self, nbytes: int) -> bool:
        return self._overdraft or self._fits(nbytes)

    def _fits(self, nbytes: int) -> bool:
        headroom = self.headroom_bytes
        if nbytes <= headroom:
            return True
        # A message larger than what is left goes when (nearly) nothing is outstanding: it could
        # wait for ever otherwise, being larger than the window or than what an idle receiver
        # leaves granted.
        nearly_all = _IDLE_SHARE * headroom >= (_IDLE_SHARE - 1) * self._widest_bytes
        return headroom > 0 and nearly_all

    def _unblock(self) -> None:
        if self._refused_bytes is not None:
            self._blocked_s += self._clock.now_s() - self._blocked_since_s
            self._refused_bytes = None


class CreditReceiver:
    """The receiving end: says how much may come, as what came is consumed.

    incarnation: a random u63 of this process, or of this connection; totals belong to it.
    """

    def __init__(self, window_bytes: int, incarnation: int) -> None:
        _check_window(window_bytes)
        self._window_bytes = window_bytes
        self._incarnation = incarnation
        self.received_bytes = 0
        """Of all messages so far: counted by who receives them."""
        self.outstanding_bytes = 0
        """Received and not yet consumed: what this link holds in memory here."""
        self._granted_bytes: int | None = None

    def received(self, nbytes: int) -> None:
        self.received_bytes += nbytes
        self.outstanding_bytes += nbytes

    def consumed(self, nbytes: int) -> bool:
        """Whether a grant may be worth a message. Raises ValueError when more is consumed than
        came."""
        left_bytes = self.outstanding_bytes - nbytes
        if left_bytes < 0 or nbytes < 0:
            raise ValueError(
                f"consumed {nbytes} bytes with {self.outstanding_bytes} outstanding on this link"
            )
        self.outstanding_bytes = left_bytes
        granted_bytes, window_bytes = self._granted_bytes, self._window_bytes
        return granted_bytes is None or (
            _IDLE_SHARE * (self.received_bytes - left_bytes + window_bytes - granted_bytes)
            > window_bytes
        )

    def grant(self) -> Grant | None:
        """A grant, if it is worth a message: the first one, half a window, or an idle link's rest.

        Call after `consumed`. If it could not be sent, `announce` repeats it later.
        """
        if self._granted_bytes is None:
            return self.announce()
        ungranted = (
            self.received_bytes - self.outstanding_bytes + self._window_bytes - self._granted_bytes
        )
        if _IDLE_SHARE * ungranted <= self._window_bytes:
            return None
        # A sender with a message larger than its headroom waits for all but an eighth of W.
        if 2 * ungranted >= self._window_bytes or self.outstanding_bytes == 0:
            return self.announce()
        return None

    def announce(self) -> Grant:
        """The present grant, new or not. Repeating it does no harm.

        Transports lose messages when links break or queues are full: repeat it now and then on a
        link from which nothing came lately, or a sender whose last grant was lost waits for ever.
        """
        self._granted_bytes = self.received_bytes - self.outstanding_bytes + self._window_bytes
        return Grant(self._granted_bytes, self._incarnation)


def _check_window(window_bytes: int) -> None:
    if window_bytes <= 0:
        raise ValueError(f"window_bytes = {window_bytes}: must be greater than 0")
