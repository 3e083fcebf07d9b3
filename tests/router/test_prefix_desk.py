"""Where prompts begin: whole pages that every hop is believed to keep, and a way back if not."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import LocalError
from helix_mq.features import FEATURES, PREFIX
from helix_mq.ids import Attempt, Epoch, NodeId, RequestId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages.control import Register
from helix_mq.messages.data import RefusedItem, TokenItem
from helix_mq.prefix_blocks import names_fit
from helix_mq.sampling import SamplingParams
from router.events import SendRow
from router.kv_books import KvBooks
from router.membership import Membership
from router.prefix_desk import MAX_MISSES, PrefixDesk
from router.prefix_memory import PrefixMemory
from router.prefix_settings import PrefixSettings, Share
from router.refusals import FromStart, GiveUp, MoveOn, judge
from router.service import Generation
from router.sessions import Session
from router.text import TextDelta, TextStream

A, B = NodeId("a"), NodeId("b")
ROUTE = Route((Hop(A, LayerRange(0, 3)), Hop(B, LayerRange(3, 6))))
WIDER = Route((Hop(A, LayerRange(0, 2)), Hop(B, LayerRange(2, 6))))
EPOCH = Epoch(5)


class NoText(TextStream):
    def __init__(self) -> None:
        pass

    def push(self, token_ids: Iterable[int]) -> TextDelta:
        return TextDelta("")


class World:
    def __init__(
        self,
        *,
        share: Share = "key",
        pages: tuple[int, int] = (16, 16),
        features: tuple[str, ...] = FEATURES,
    ) -> None:
        members = Membership(6)
        books = KvBooks()
        for node, page_tokens, has in ((A, pages[0], FEATURES), (B, pages[1], features)):
            register = Register(node, 1, "tcp://h:1", "", "cpu", 1, 4, "d", "0", features=has)
            members.join(register, 0.0)
            books.set_node(node, 1000, page_tokens)
        self.desk = PrefixDesk(PrefixSettings(share, b"k" * 32), members, books)

    def session(self, tokens: int, *, owner: str = "", base: int = 0) -> Session:
        generation = Generation(
            tuple(range(base, base + tokens)), SamplingParams(max_tokens=500), owner=owner
        )
        return Session(RequestId(1), generation, NoText(), 0.0, 9.0, 9000, frozenset())

    def start(self, session: Session, route: Route = ROUTE, epoch: Epoch = EPOCH) -> SendRow:
        session.prefix = self.desk.begin(session, route)
        return session.start(route, epoch, 0.0)

    def token(self, session: Session, epoch: Epoch = EPOCH) -> None:
        self.desk.token(session, epoch)
        item = TokenItem(1, session.attempt, session.length_tokens, 7)
        session.take(item, 0.0)

    def computed(self, tokens: int, **about: object) -> Session:
        session = self.session(tokens, **about)  # type: ignore[arg-type]
        self.start(session)
        self.token(session)
        return session


@pytest.mark.parametrize(
    ("computed", "wanted", "skipped"),
    [(200, 200, 192), (200, 130, 128), (200, 128, 64), (64, 65, 64), (63, 200, 0), (200, 64, 0)],
)
def test_whole_blocks_but_never_the_last_token(computed: int, wanted: int, skipped: int) -> None:
    world = World()
    world.computed(computed)
    session = world.session(wanted)
    row = world.start(session)
    assert row.position == skipped
    assert row.token_ids == tuple(range(skipped, wanted))
    assert names_fit(row.blocks, row.position, len(row.token_ids))
    assert bool(row.blocks) == (wanted >= 64)
    assert session.cached_tokens == skipped
    assert session.prefilling


@pytest.mark.parametrize(
    ("pages", "skipped"), [((16, 16), 192), ((256, 16), 0), ((128, 16), 128), ((16, 48), 192)]
)
def test_pages_of_every_hop_are_whole(pages: tuple[int, int], skipped: int) -> None:
    world = World(pages=pages)
    world.computed(250)
    assert world.start(world.session(250)).position == skipped


def test_layers_that_a_node_did_not_run_are_not_kept() -> None:
    world = World()
    world.computed(200)
    assert world.start(world.session(200), WIDER).position == 0
    session = world.session(200)
    world.start(session, WIDER)
    world.token(session)
    assert world.start(world.session(200), WIDER).position == 192
    assert world.start(world.session(200), ROUTE).position == 192


@pytest.mark.parametrize(
    ("share", "owner", "skipped"),
    [("key", "ann", 192), ("key", "bob", 0), ("all", "bob", 192), ("off", "ann", 0)],
)
def test_who_shares(share: Share, owner: str, skipped: int) -> None:
    world = World(share=share)
    world.computed(200, owner="ann")
    row = world.start(world.session(200, owner=owner))
    assert row.position == skipped
    assert bool(row.blocks) == (share != "off")


def test_programs_that_know_no_prefixes_get_whole_prompts() -> None:
    world = World(features=tuple(f for f in FEATURES if f != PREFIX))
    world.computed(200)
    row = world.start(world.session(200))
    assert (row.position, row.blocks) == (0, b"")


def test_a_re_routed_request_goes_on_from_what_is_kept_of_its_prompt() -> None:
    world = World()
    session = world.computed(200)
    for _ in range(3):
        world.token(session)
    session.requeue()
    row = world.start(session)
    assert row.position == 192
    assert len(row.token_ids) == 12
    assert session.cached_tokens == 0, "its prompt was computed for itself"
    assert names_fit(row.blocks, row.position, len(row.token_ids))


def test_nodes_that_left_or_changed_keep_nothing() -> None:
    world = World()
    world.computed(200)
    world.desk.forget([B])
    assert world.start(world.session(200)).position == 0
    assert world.desk.statistics().known_blocks == 3


def test_what_older_slices_computed_is_not_believed() -> None:
    world = World()
    session = world.session(200)
    world.start(session, epoch=Epoch(4))
    world.token(session)
    assert world.start(world.session(200)).position == 0


def test_a_node_that_keeps_nothing_sends_back_without_blame() -> None:
    world = World()
    world.computed(200)
    session = world.session(200)
    world.start(session)
    item = RefusedItem(1, session.attempt, "prefix_missing", "gone")
    assert judge(session, B, item) == FromStart()
    world.desk.missing(session, B)
    session.requeue(counted=False)
    assert world.start(session).position == 0
    assert (session.reroutes, session.attempt) == (0, Attempt(1))
    # Who has been asked for nothing cannot miss it.
    again = RefusedItem(1, session.attempt, "prefix_missing", "gone")
    assert judge(session, B, again) == MoveOn(avoid=B)
    world.token(session)
    assert session.cached_tokens == 0
    assert world.start(world.session(200)).position == 192


def test_a_node_that_never_keeps_what_it_computes_is_asked_twice() -> None:
    world = World()
    session = world.session(200)
    positions = []
    for _ in range(MAX_MISSES + 2):
        world.computed(200)
        positions.append(world.start(session).position)
        if positions[-1]:
            world.desk.missing(session, B)
        session.requeue(counted=False)
    assert positions == [192] * MAX_MISSES + [0, 0]


def test_what_overflowed_is_neither_kept_nor_gone_on_from() -> None:
    world = World()
    world.computed(200)
    session = world.session(200)
    world.start(session)
    item = RefusedItem(1, session.attempt, "logits_not_finite", "inf")
    assert judge(session, B, item) == MoveOn(damaged=True)
    world.desk.distrust(session)
    session.requeue()
    row = world.start(session)
    assert (row.position, row.blocks) == (0, b"")
    assert world.start(world.session(200)).position == 0
    session.overflows = 2
    verdict = judge(session, B, RefusedItem(1, session.attempt, "logits_not_finite", "inf"))
    assert isinstance(verdict, GiveUp)
    assert isinstance(verdict.error, LocalError)


def test_figures() -> None:
    world = World()
    world.computed(200)
    session = world.session(200)
    world.start(session)
    world.token(session)
    world.token(session)
    figures = world.desk.statistics()
    assert (figures.prompt_tokens, figures.hit_tokens, figures.misses) == (400, 192, 0)


names = st.lists(st.binary(min_size=1, max_size=1), max_size=6, unique=True)


@given(st.lists(st.tuples(st.sampled_from([A, B]), names, st.booleans()), max_size=30))
def test_memory_is_bounded_and_never_invents(
    steps: list[tuple[NodeId, list[bytes], bool]],
) -> None:
    memory = PrefixMemory(max_blocks=8)
    told: dict[NodeId, OrderedDict[bytes, None]] = {A: OrderedDict(), B: OrderedDict()}
    for node, some, keep in steps:
        if keep:
            memory.keep(Hop(node, LayerRange(0, 2)), some)
            told[node].update(dict.fromkeys(some))
        else:
            memory.forget(node, some)
            for name in some:
                told[node].pop(name, None)
        assert len(memory) <= 8
        kept = {
            n: [x for x in told[n] if memory.kept_blocks([Hop(n, LayerRange(0, 2))], [x])]
            for n in told
        }
        assert sum(map(len, kept.values())) == len(memory)
        if keep and len(some) <= 8 and len(memory) < 8:
            assert memory.kept_blocks([Hop(node, LayerRange(0, 2))], some) == len(some)
    for node in told:
        memory.forget_node(node)
    assert len(memory) == 0


def test_a_long_prompt_is_learned_in_little_time_where_the_memory_is_full() -> None:
    """The router's loop does nothing else meanwhile."""
    count = iter(range(1 << 30))

    def fresh(blocks: int) -> list[bytes]:
        return [next(count).to_bytes(16) for _ in range(blocks)]

    def took_s(nodes: int) -> float:
        hops = [Hop(NodeId(f"n{n}"), LayerRange(0, 4)) for n in range(nodes)]
        memory = PrefixMemory(max_blocks=20_000)
        for hop in hops:
            memory.keep(hop, fresh(25_600 // nodes))
        prompt = fresh(2048)
        began_s = time.thread_time()
        for hop in hops[:8]:
            memory.keep(hop, prompt)
        seconds = time.thread_time() - began_s
        assert len(memory) == 20_000
        # What is wanted now stays, the beginnings first.
        assert memory.kept_blocks([hops[7]], prompt) > 50
        return seconds

    # Some 8 ms; with a look at all nodes for each block that goes 256 of them took 150.
    least_s = {nodes: min(took_s(nodes) for _ in range(3)) for nodes in (8, 256)}
    assert least_s[256] < 6 * least_s[8]
