"""Drafts in the router's core: limits, several tokens of one pass, and nodes that get it wrong."""

from __future__ import annotations

import random

import pytest

from helix_mq.features import DIRECT, VERIFY
from helix_mq.messages.data import TokenItem
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.core import CoreSettings
from router.service import Finished
from router.speculation import DraftStatistics, SpeculationSettings
from tests.router import world as worlds
from tests.router.world import World


def repeating(seed: int, tokens: tuple[int, ...]) -> int:
    """A model that repeats itself, and says something else now and then."""
    at = len(tokens)
    return (tokens[at - 11] if at > 40 and at % 29 else at * 7 + seed + tokens[-1]) % 95


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "next_token", repeating)


class Verifying(World):
    """Its nodes verify drafts as real ones do, and keep what was wrong until it is written over."""

    def __init__(self, settings: CoreSettings | None = None) -> None:
        super().__init__(settings, features=(VERIFY,))
        self.wrong: dict[tuple[int, int], int] = {}
        self.rows: list[ev.SendRow] = []
        self.join_all()

    def items_of(self, row: ev.SendRow) -> list[TokenItem]:
        seq = row.request, row.attempt
        kv = self._kv.setdefault(seq, [])
        assert row.position == len(kv), "only drafts that were wrong may be written over"
        assert row.position + len(row.token_ids) <= self.limit(row)
        drafts = list(row.token_ids[1:]) if row.verify else []
        kv.extend(row.token_ids[:1] if row.verify else row.token_ids)
        seed = self.streams[row.request].generation.sampling.seed
        items: list[TokenItem] = []
        while True:
            token = repeating(seed, tuple(kv))
            right = drafts[:1] == [token]
            items.append(TokenItem(*seq, len(kv), token, more=right))
            if not right:
                return items
            kv.append(drafts.pop(0))

    def limit(self, row: ev.SendRow) -> int:
        """KV that the longest text takes: its last token is never run."""
        generation = self.streams[row.request].generation
        return len(generation.prompt_ids) + generation.sampling.max_tokens - 1 or 1

    def next_row(self, index: int = 0) -> ev.SendRow:
        row = self.in_flight.pop(index)
        self.rows.append(row)
        return row

    def answer_all(self, rng: random.Random, *, split: bool = False) -> None:
        """Rows in any order; the tokens of a pass in one message or in one each."""
        while self.in_flight:
            row = self.next_row(rng.randrange(len(self.in_flight)))
            if self.streams[row.request].end is not None:
                continue
            items, last = self.items_of(row), row.route.hops[-1].node
            if split:
                for item in items:
                    self.tokens(last, item)
            else:
                self.tokens(last, *items)


def sampling(tokens: int, seed: int = 5, **more: object) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, seed=seed, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_streams_are_whole_in_any_order(seed: int, split: bool) -> None:
    """World.check holds every token against the model's own text after each event."""
    rng, world = random.Random(seed), Verifying()
    for n in range(4):
        world.submit((n + 1, 2, 3), sampling(rng.choice([1, 2, 3, 90, 200]), seed=n))
    world.submit((7, 7), sampling(220, seed=9))
    world.answer_all(rng, split=split)
    assert all(isinstance(s.end, Finished) for s in world.streams.values())
    counts = world.core.statistics().drafts
    assert 40 < counts.accepted <= counts.drafted
    tokens = sum(len(s.tokens) for s in world.streams.values())
    # What ends a text midway leaves right drafts behind.
    assert tokens <= len(world.rows) + counts.accepted + 5


def started(settings: SpeculationSettings | None = None, requests: int = 1) -> Verifying:
    """A world with drafts under way in the first row of all."""
    world = Verifying(CoreSettings(speculation=settings or SpeculationSettings()))
    for _ in range(requests):
        world.submit((1, 2, 3), sampling(200))
    for _ in range(1000):
        if world.in_flight[0].verify:
            return world
        row = world.next_row()
        world.tokens(row.route.hops[-1].node, *world.items_of(row))
    raise AssertionError("no drafts were made")


def test_the_next_row_waits_for_the_last_token_of_a_pass() -> None:
    world = started()
    row = world.next_row()
    items = [TokenItem(row.request, row.attempt, row.position + 1, row.token_ids[1], more=True)]
    assert not [e for e in world.tokens(row.route.hops[-1].node, *items) if type(e) is ev.SendRow]
    end = TokenItem(row.request, row.attempt, row.position + 2, repeating(5, text_of(world)))
    effects = world.tokens(row.route.hops[-1].node, end)
    assert [e.position for e in effects if isinstance(e, ev.SendRow)] == [row.position + 2]


def text_of(world: Verifying) -> tuple[int, ...]:
    (stream,) = world.streams.values()
    return (*stream.generation.prompt_ids, *stream.tokens)


@pytest.mark.parametrize("honest", [0, 1, 2])
def test_a_node_that_goes_on_behind_another_text_is_left(honest: int) -> None:
    """`more` behind a token that is not the draft there, or where no draft is left."""
    world = started()
    row = world.next_row()
    last = row.route.hops[-1].node
    tokens = list(row.token_ids[1 : 1 + honest])
    if honest < 2:
        tokens.append((row.token_ids[1 + honest] + 1) % 95)
    else:
        tokens = [*row.token_ids[1:], 5]
    at = row.position + 1
    items = [
        TokenItem(row.request, row.attempt, at + i, token, more=True)
        for i, token in enumerate(tokens)
    ]
    session = world.core.sessions()[row.request]
    before = list(session.output)
    # Not by way of World.check: such a node may also say wrong tokens that nobody can tell.
    world.core.handle(ev.TokensArrived(worlds.Tokens(7, last, tuple(items))))
    assert session.attempt == 1
    assert session.output == before + tokens[:-1]
    assert session.drafts == ()


def test_more_behind_a_prompt_is_no_answer() -> None:
    world = Verifying()
    request = world.submit((1, 2, 3), sampling(50))
    row = world.next_row()
    item = TokenItem(request, 0, 3, repeating(5, (1, 2, 3)), more=True)
    world.core.handle(ev.TokensArrived(worlds.Tokens(7, row.route.hops[-1].node, (item,))))
    assert world.core.sessions()[request].attempt == 1
    assert world.core.sessions()[request].output == []


def test_a_lost_node_takes_its_drafts_along() -> None:
    world = started()
    row = world.next_row()
    last = row.route.hops[-1].node
    first = world.items_of(row)[0]
    world.tokens(last, first)
    world.in_flight.clear()
    world.lose(last)
    world.tokens(last, TokenItem(row.request, row.attempt, first.position + 1, 1))
    assert world.in_flight[0].position == 0
    world.answer_all(random.Random(0))
    assert all(isinstance(s.end, Finished) for s in world.streams.values())


def test_what_is_said_behind_a_stop_string_is_nobodys() -> None:
    whole = Verifying()
    whole.submit((1, 2, 3), sampling(200))
    whole.answer_all(random.Random(0))
    (stream,) = whole.streams.values()
    pieces = {stream.text[at : at + 4] for at in range(60, 120)}
    for piece in sorted(pieces)[:12]:
        world = Verifying()
        world.submit((1, 2, 3), sampling(200), stop=(piece,))
        # The world's check knows no stop strings.
        world.check = lambda: None  # type: ignore[method-assign]
        world.answer_all(random.Random(0))
        (stopped,) = world.streams.values()
        assert isinstance(stopped.end, Finished)
        assert stopped.end.finish_reason == "stop"
        assert stopped.text == stream.text[: stream.text.index(piece)]


def test_drafts_are_shared_and_end_where_there_are_too_many_requests() -> None:
    assert len(started(SpeculationSettings(drafts_at_once=3)).in_flight[0].token_ids) - 1 == 3
    both = started(SpeculationSettings(drafts_at_once=5), requests=2)
    assert both.core.statistics().running == 2
    assert len(both.in_flight[0].token_ids) - 1 == 2
    with pytest.raises(IndexError):
        # All texts end without one draft.
        started(SpeculationSettings(drafts_at_once=1), requests=2)


def test_none_are_made_where_they_are_off_or_a_node_is_too_old() -> None:
    with pytest.raises(IndexError):
        started(SpeculationSettings(enabled=False))
    world = Verifying()
    for node in list(world.members):
        world.lose(node)
    world._features = ()
    world.join_all()
    world.submit((1, 2, 3), sampling(200))
    world.answer_all(random.Random(0))
    assert not any(row.verify for row in world.rows)


def test_none_are_made_that_kv_has_no_room_for() -> None:
    world = Verifying(CoreSettings(expected_output_tokens=1))
    held = [world.submit((1, 2, 3), sampling(200, seed=n)) for n in range(3)]
    books = world.core._books
    for node in world.members:
        # Nearly full: what runs may grow into the rest, guesses may not.
        total = books.book(node).total_pages  # type: ignore[arg-type]
        books._high_water = books.book(node).reserved_pages / total  # type: ignore[arg-type]
    world.answer_all(random.Random(1))
    assert held
    assert not any(row.verify for row in world.rows if row.request in held)


@pytest.mark.parametrize("told", [3, 0])
def test_what_first_hops_guess_is_what_last_hops_say(told: int) -> None:
    """Those of older releases say nothing; then nothing is known of their drafts."""
    features = (VERIFY, DIRECT)
    world = World(CoreSettings(token_return="direct"), features=features)
    world.join_all()
    request = world.submit((1, 2, 3), sampling(9))
    row = world.in_flight.pop()
    assert row.direct
    text, items = list(row.token_ids), []
    for number in range(9):
        token = repeating(5, tuple(text))
        # The prompt's token, then passes of three: two drafts right of three.
        place = (number - 1) % 3
        more, drafted = number > 0 and place < 2, told if number > 0 and not place else 0
        items.append(TokenItem(request, row.attempt, len(text), token, more=more, drafted=drafted))
        text.append(token)
    world.tokens(row.route.hops[-1].node, *items)
    end = world.streams[request].end
    assert isinstance(end, Finished)
    counts = (9, 6) if told else (0, 0)
    assert (end.drafted_tokens, end.accepted_tokens) == counts
    assert world.core.statistics().drafts == DraftStatistics(*counts)
