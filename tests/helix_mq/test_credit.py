"""Credit: what may be outstanding, that it comes back, and that nobody waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from helix_mq.clock import VirtualClock
from helix_mq.credit import CreditReceiver, CreditSender, Grant

W = 800


def pair(window: int = W) -> tuple[CreditSender, CreditReceiver]:
    return CreditSender(window, VirtualClock()), CreditReceiver(window, incarnation=7)


def give(sender: CreditSender, grant: Grant | None) -> bool:
    assert grant is not None
    return sender.granted(grant.total_bytes, grant.incarnation)


def test_a_new_link_may_send_its_window_and_no_more() -> None:
    sender, _ = pair()
    for _ in range(8):
        assert sender.may_send(100)
        sender.sent(100)
    assert not sender.may_send(1)
    assert sender.headroom_bytes == 0


def test_the_receivers_window_counts_from_its_first_grant_on() -> None:
    sender = CreditSender(1000, VirtualClock())
    receiver = CreditReceiver(100, incarnation=1)
    first = receiver.grant()
    assert first == Grant(100, 1)
    give(sender, first)
    assert sender.headroom_bytes == 100
    sender.sent(60)
    assert not sender.may_send(60)
    wide = CreditReceiver(5000, incarnation=1)
    sender = CreditSender(1000, VirtualClock())
    give(sender, wide.grant())
    assert sender.may_send(4000)


def test_grants_come_when_they_are_worth_a_message() -> None:
    sender, receiver = pair()
    assert give(sender, receiver.grant())
    assert receiver.grant() is None
    for _ in range(8):
        receiver.received(100)
    grants = []
    for _ in range(8):
        receiver.consumed(100)
        grants.append(receiver.grant())
    # Half a window, and the rest once the link is idle.
    assert grants == [None] * 3 + [Grant(W + 400, 7)] + [None] * 3 + [Grant(W + 800, 7)]


def test_an_idle_link_of_small_messages_is_not_granted_one_by_one() -> None:
    _, receiver = pair()
    receiver.grant()
    count = 0
    for _ in range(1000):
        receiver.received(10)
        receiver.consumed(10)
        count += receiver.grant() is not None
    assert count == 1000 * 10 // 110


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [2, 2, 0], [2], [0, 2, 1, 0]])
def test_lost_repeated_and_overtaken_grants_do_no_harm(order: list[int]) -> None:
    sender, receiver = pair()
    for _ in range(8):
        sender.sent(100)
        receiver.received(100)
    grants = []
    for _ in range(3):
        receiver.consumed(200)
        grants.append(receiver.announce())
    for i in order:
        sender.granted(grants[i].total_bytes, grants[i].incarnation)
    assert sender.headroom_bytes == 600


def test_a_message_larger_than_the_window_goes_when_nothing_is_outstanding() -> None:
    sender, receiver = pair()
    give(sender, receiver.grant())
    assert sender.may_send(10 * W)
    sender.sent(10 * W)
    assert sender.headroom_bytes == -9 * W
    assert not sender.may_send(1)
    receiver.received(10 * W)
    assert receiver.grant() is None
    receiver.consumed(10 * W)
    assert give(sender, receiver.grant())
    sender.sent(W // 4)
    assert not sender.may_send(10 * W)


def test_a_new_incarnation_of_the_receiver_starts_anew() -> None:
    sender, old = pair()
    give(sender, old.grant())
    sender.sent(W)
    assert not sender.may_send(1)
    new = CreditReceiver(W, incarnation=8)
    assert give(sender, new.grant())
    assert sender.headroom_bytes == W
    sender.sent(W)
    # What the old one had still to say is of no value.
    assert not sender.granted(100 * W, 7)
    assert not sender.may_send(1)
    new.received(W)
    new.consumed(W)
    assert give(sender, new.grant())
    assert sender.may_send(W)


def test_an_overdraft_lets_one_message_pass() -> None:
    sender, receiver = pair()
    give(sender, receiver.grant())
    sender.sent(W)
    assert not sender.may_send(100)
    sender.overdraft()
    assert sender.may_send(100)
    sender.sent(100)
    assert not sender.may_send(100)
    assert sender.headroom_bytes == -100
    assert sender.statistics().overdrafts == 1
    for nbytes in (W, 100):
        receiver.received(nbytes)
        receiver.consumed(nbytes)
    give(sender, receiver.grant())
    assert sender.headroom_bytes == W


def test_an_overdraft_that_was_not_needed_is_not_counted_nor_kept() -> None:
    sender, _ = pair()
    sender.overdraft()
    sender.sent(W)
    assert sender.statistics().overdrafts == 0
    assert not sender.may_send(1)


def test_blocked_time_runs_from_the_refusal_to_the_credit() -> None:
    clock = VirtualClock()
    sender, receiver = CreditSender(W, clock), CreditReceiver(W, incarnation=7)
    sender.sent(W)
    receiver.received(W)
    clock.advance(5.0)
    assert sender.blocked_s == 0.0
    assert not sender.may_send(100)
    clock.advance(1.0)
    assert not sender.may_send(100)
    clock.advance(1.5)
    assert sender.blocked_s == 2.5
    assert sender.statistics().blocked
    receiver.consumed(W)
    give(sender, receiver.grant())
    clock.advance(10.0)
    assert sender.blocked_s == 2.5
    assert not sender.statistics().blocked
    assert sender.statistics().times_blocked == 1


def test_more_cannot_be_consumed_than_came() -> None:
    _, receiver = pair()
    receiver.received(10)
    for nbytes in (11, -1):
        with pytest.raises(ValueError, match="with 10 outstanding"):
            receiver.consumed(nbytes)


def test_windows_are_positive() -> None:
    with pytest.raises(ValueError, match="window_bytes = 0"):
        CreditSender(0, VirtualClock())
    with pytest.raises(ValueError, match="window_bytes = -1"):
        CreditReceiver(-1, 1)


class Link(RuleBasedStateMachine):
    """A sender, a receiver, and a wire that loses, repeats and reorders grants."""

    grants = Bundle("grants")

    @initialize(assumed=st.integers(1, 1000), window=st.integers(1, 1000), first=st.booleans())
    def begin(self, assumed: int, window: int, first: bool) -> None:
        self.clock = VirtualClock()
        self.window = window
        self.bound = max(window, assumed)
        self.sender = CreditSender(assumed, self.clock)
        self.receiver = CreditReceiver(window, incarnation=3)
        self.on_the_wire: list[int] = []
        self.held: list[int] = []
        self.sent_bytes = self.consumed_bytes = self.largest = 0
        self.heard = first
        if first:
            give(self.sender, self.receiver.grant())

    def outstanding(self) -> int:
        return self.sent_bytes - self.consumed_bytes

    @rule(nbytes=st.integers(0, 3000))
    def send(self, nbytes: int) -> None:
        if not self.sender.may_send(nbytes):
            return
        if self.outstanding() + nbytes > self.bound:
            # Only a message that found the window all but empty may exceed it.
            assert self.outstanding() < self.bound
            assert self.sender.headroom_bytes > 0
        self.largest = max(self.largest, nbytes)
        self.sender.sent(nbytes)
        self.sent_bytes += nbytes
        self.on_the_wire.append(nbytes)

    @precondition(lambda self: self.on_the_wire)
    @rule()
    def arrive(self) -> None:
        nbytes = self.on_the_wire.pop(0)
        self.receiver.received(nbytes)
        self.held.append(nbytes)

    @precondition(lambda self: self.held)
    @rule(target=grants, which=st.randoms(use_true_random=False))
    def consume(self, which) -> Grant | None:  # type: ignore[no-untyped-def]
        nbytes = self.held.pop(which.randrange(len(self.held)))
        self.receiver.consumed(nbytes)
        self.consumed_bytes += nbytes
        return self.receiver.grant()

    @rule(target=grants)
    def announce(self) -> Grant:
        return self.receiver.announce()

    @rule(grant=grants)
    def deliver(self, grant: Grant | None) -> None:
        """Grants of the bundle may be delivered late, often, or never."""
        if grant is not None:
            before = self.sender.headroom_bytes
            self.sender.granted(grant.total_bytes, grant.incarnation)
            # Only the first grant heard may take back, down to the receiver's own window.
            assert self.sender.headroom_bytes >= before or not self.heard
            self.heard = True

    @invariant()
    def never_exceeds_the_window_by_more_than_one_message(self) -> None:
        if hasattr(self, "sender"):
            assert self.outstanding() <= self.bound + self.largest
            assert self.receiver.outstanding_bytes == sum(self.held)

    @rule(nbytes=st.integers(0, 3000))
    def everything_may_go_once_all_is_consumed_and_announced(self, nbytes: int) -> None:
        while self.on_the_wire:
            self.arrive()
        while self.held:
            taken = self.held.pop()
            self.receiver.consumed(taken)
            self.consumed_bytes += taken
        self.deliver(self.receiver.announce())
        # No credit was lost on the way: the whole window is there again.
        assert self.sender.headroom_bytes == self.window
        assert self.sender.may_send(nbytes)


TestLink = Link.TestCase
TestLink.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class Faithful(RuleBasedStateMachine):
    """Without losses no announcements are needed: grants alone keep every message moving."""

    @initialize(window=st.integers(1, 1000))
    def begin(self, window: int) -> None:
        self.sender = CreditSender(window, VirtualClock())
        self.receiver = CreditReceiver(window, incarnation=3)
        give(self.sender, self.receiver.grant())
        self.held: list[int] = []
        self.window = window

    @rule(nbytes=st.integers(0, 3000))
    def send_whatever_it_takes(self, nbytes: int) -> None:
        while not self.sender.may_send(nbytes):
            assert self.held, "waits for credit that nobody owes"
            self.consume()
        outstanding = sum(self.held)
        assert outstanding + nbytes <= self.window or 8 * outstanding <= self.window
        self.sender.sent(nbytes)
        self.receiver.received(nbytes)
        self.held.append(nbytes)

    @precondition(lambda self: self.held)
    @rule()
    def consume(self) -> None:
        self.receiver.consumed(self.held.pop(0))
        grant = self.receiver.grant()
        if grant is not None:
            assert give(self.sender, grant)


TestFaithful = Faithful.TestCase
TestFaithful.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
