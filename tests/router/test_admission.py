"""The waiting queue: its books against a plain model, and what it promises owners and classes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from helix_mq.ids import RequestId
from router.admission import BACKGROUND, INTERACTIVE, WaitingQueue
from router.admission_lines import FairLines, Waiting

OWNERS = ("", "ada", "bob", "cy")


def waiting(
    request: int,
    owner: str = "",
    cost: int = 10,
    priority: int = INTERACTIVE,
    arrived_s: float | None = None,
    *,
    begun: bool = False,
) -> Waiting:
    at_s = float(request) if arrived_s is None else arrived_s
    return Waiting(RequestId(request), owner, priority, at_s, cost, begun)


def starts(queue: WaitingQueue, most: int = 10**9) -> list[int]:
    """Takes what is next until nothing waits."""
    order: list[int] = []
    while len(order) < most and (head := queue.head()) is not None:
        queue.take(head)
        order.append(head)
    return order


class QueueAgainstAModel(RuleBasedStateMachine):
    """Whatever comes, goes and comes back: books, order of arrival, the standing head."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue(0.25)
        self.present: dict[int, Waiting] = {}
        self.running: dict[int, Waiting] = {}
        self.ever = 0
        self.standing: int | None = None

    @rule(
        owner=st.sampled_from(OWNERS),
        priority=st.integers(0, 1),
        cost=st.integers(1, 200),
        arrived=st.integers(0, 5),
    )
    def push_new(self, owner: str, priority: int, cost: int, arrived: int) -> None:
        self.ever += 1
        self._push(waiting(self.ever, owner, cost, priority, float(arrived)))

    @rule(pick=st.integers(0, 1 << 16))
    def comes_back(self, pick: int) -> None:
        if self.running:
            old = self.running.pop(sorted(self.running)[pick % len(self.running)])
            self.standing = None
            self._push(
                Waiting(old.request, old.owner, old.priority, old.arrived_s, old.cost_tokens, True)
            )

    @rule(times=st.integers(1, 5))
    def take_the_head(self, times: int) -> None:
        for _ in range(times):
            head = self.queue.head()
            if head is not None:
                self.queue.take(head)
                self.running[head] = self.present.pop(head)
                self.standing = None

    @rule(pick=st.integers(0, 1 << 16))
    def cancel_any(self, pick: int) -> None:
        if self.present:
            request = sorted(self.present)[pick % len(self.present)]
            assert self.queue.remove(RequestId(request)) == self.present.pop(request)
            assert self.queue.remove(RequestId(request)) is None
            # Which class is next may hang on what was cancelled.
            self.standing = None

    @rule(pick=st.integers(0, 1 << 16))
    def out_and_in_again(self, pick: int) -> None:
        """What is too long for the nodes that are left steps aside and keeps its place."""
        if self.present:
            request = sorted(self.present)[pick % len(self.present)]
            said = self.queue.remove(RequestId(request))
            assert said is not None
            self.queue.push(said)
            self.standing = None

    @invariant()
    def books_agree(self) -> None:
        assert len(self.queue) == len(self.present)
        assert self.queue.tokens == sum(w.cost_tokens for w in self.present.values())
        assert dict(self.queue.owners) == Counter(w.owner for w in self.present.values())
        assert all((RequestId(r) in self.queue) == (r in self.present) for r in range(self.ever))

    @invariant()
    def the_head_is_the_first_of_its_line(self) -> None:
        head = self.queue.head()
        assert (head is None) == (not self.present)
        if head is None:
            return
        chosen = self.present[head]
        begun = [w for w in self.present.values() if w.begun]
        if begun:
            assert chosen == min(begun, key=lambda w: (w.priority, w.arrived_s, w.request))
            return
        line = [w for w in self.present.values() if w.owner == chosen.owner]
        same = [w for w in line if w.priority == chosen.priority]
        if self.standing is not None and self.standing in self.present:
            assert head == self.standing, "nothing that is new goes before a head"
        elif chosen.request != self.standing:
            self.standing = head
        oldest = min(same, key=lambda w: (w.arrived_s, w.request))
        # An older one may have come while the head stood: clocks are set, and routers restart.
        assert chosen == oldest or chosen.request == self.standing

    def _push(self, entry: Waiting) -> None:
        if entry.priority == INTERACTIVE and not self._interactive_waits():
            self.standing = None
        self.queue.push(entry)
        self.present[entry.request] = entry

    def _interactive_waits(self) -> bool:
        return any(w.priority == INTERACTIVE for w in self.present.values())


QueueAgainstAModel.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None
)
TestQueue = QueueAgainstAModel.TestCase


def test_one_request_does_not_wait_behind_a_thousand_of_another_key() -> None:
    queue = WaitingQueue()
    for request in range(1000):
        queue.push(waiting(request, "hog"))
    assert starts(queue, 100) == list(range(100))
    queue.push(waiting(1000, "ada"))
    assert starts(queue, 2)[0] == 1000, "the hog is a whole request ahead of her"


@given(st.lists(st.tuples(st.sampled_from(("ada", "bob", "cy")), st.integers(1, 500)), min_size=1))
@settings(deadline=None)
def test_owners_with_requests_waiting_get_the_same_tokens(said: list[tuple[str, int]]) -> None:
    queue = WaitingQueue()
    left: Counter[str] = Counter()
    for request, (owner, cost) in enumerate(said):
        queue.push(waiting(request, owner, cost))
        left[owner] += 1
    largest = max(cost for _, cost in said)
    got: Counter[str] = Counter()
    while (head := queue.head()) is not None:
        owner, cost = said[head]
        backlogged = [name for name in left if left[name]]
        shares = [got[name] for name in backlogged]
        assert max(shares) - min(shares) <= 2 * largest
        queue.take(head)
        got[owner] += cost
        left[owner] -= 1
    assert sum(got.values()) == sum(cost for _, cost in said)


def test_what_an_owner_did_not_use_is_not_saved_up() -> None:
    queue = WaitingQueue()
    for request in range(50):
        queue.push(waiting(request, "busy"))
        assert starts(queue) == [request]
    for request in range(50, 70):
        queue.push(waiting(request, "busy"))
        queue.push(waiting(request + 50, "idle"))
    order = ["idle" if r >= 100 else "busy" for r in starts(queue)]
    assert all(abs(order[:n].count("idle") - n / 2) <= 2 for n in range(40))


def test_a_long_prompt_stays_the_head_while_others_come() -> None:
    queue = WaitingQueue()
    queue.push(waiting(1, "long", cost=5000))
    assert queue.head() == 1
    for request in range(2, 500):
        queue.push(waiting(request, f"other-{request}", cost=1))
    assert queue.head() == 1


def test_what_had_begun_goes_first_and_costs_its_owner_nothing_again() -> None:
    queue = WaitingQueue()
    queue.push(waiting(1, "ada", cost=100))
    assert starts(queue) == [1]
    queue.push(waiting(2, "bob"))
    assert queue.head() == 2
    queue.push(waiting(3, "cy", priority=BACKGROUND, begun=True))
    queue.push(waiting(1, "ada", cost=100, begun=True))
    assert starts(queue) == [1, 3, 2]
    queue.push(waiting(4, "ada", cost=10))
    queue.push(waiting(5, "bob", cost=10))
    assert starts(queue) == [5, 4], "ada's tag is at 100, bob's at 10"


def test_background_requests_get_their_share_under_a_steady_interactive_load() -> None:
    queue = WaitingQueue(background_share=0.1)
    for request in range(1000):
        queue.push(waiting(request, f"key{request % 3}"))
    for request in range(1000, 1100):
        queue.push(waiting(request, "batch", cost=25, priority=BACKGROUND))
    order = starts(queue, 500)
    tokens = sum(25 if r >= 1000 else 10 for r in order)
    background = sum(25 for r in order if r >= 1000)
    assert 0.08 <= background / tokens <= 0.11
    assert order[0] < 1000


def test_alone_a_class_has_everything_and_no_credit_is_saved_up() -> None:
    queue = WaitingQueue(background_share=0.5)
    queue.push(waiting(1, priority=BACKGROUND))
    assert starts(queue) == [1]
    for request in range(2, 50):
        queue.push(waiting(request))
    assert starts(queue) == list(range(2, 50))
    queue.push(waiting(50, priority=BACKGROUND))
    queue.push(waiting(51))
    assert starts(queue) == [51, 50], "what passed before it came is none of its credit"


def test_tokens_before_is_what_really_goes_before() -> None:
    queue = WaitingQueue()
    for request in range(100):
        queue.push(waiting(request, "hog"))
    assert queue.tokens_before("ada", INTERACTIVE, 10) == 10, "the hog's first is as good as next"
    assert queue.tokens_before("hog", INTERACTIVE, 10) == 1000
    for request in range(100, 105):
        queue.push(waiting(request, "ada"))
    before = queue.tokens_before("ada", INTERACTIVE, 10)
    queue.push(waiting(999, "ada"))
    order = starts(queue)
    assert abs(before - 10 * order.index(999)) <= 10


def test_what_is_remembered_of_owners_is_bounded() -> None:
    lines = FairLines()
    for request in range(20_000):
        entry = waiting(request, f"owner-{request}", cost=1 + request % 7)
        lines.push(entry)
        lines.take(entry)
    assert len(lines._owed) <= 1024
    assert not lines._lines


def test_heaps_do_not_grow_with_requests_that_come_and_go() -> None:
    queue = WaitingQueue()
    queue.push(waiting(0, "ada"))
    for request in range(1, 10_000):
        queue.push(waiting(request, "ada"))
        queue.remove(RequestId(request))
        stays = queue.remove(RequestId(0))
        assert stays is not None
        queue.push(stays)
    assert len(queue) == 1
    assert len(queue._classes[INTERACTIVE]._lines["ada"].heap) <= 130
