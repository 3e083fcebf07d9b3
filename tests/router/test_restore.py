"""A router's core that dies anywhere and is restored from what was written: the same tokens, the
same text, each request ends once. What nodes still say of the earlier life changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.errors import DeadlineExceeded, NotServing
from helix_mq.ids import RequestId
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.journal_records import Ended, Opened, StoredRequest, TokenKept
from router.restore import ATTEMPTS_PER_LIFE, event_of
from router.service import Broken, Delta, Finished, Origin
from tests.router.world import Stream, World, undisturbed


class Lives:
    """A world that is restarted, and what a journal would hold of it."""

    def __init__(self) -> None:
        self.world = World()
        self.world.join_all()
        self.life = 1
        self.opened: dict[RequestId, Opened] = {}
        self.events: list[TokenKept | Ended] = []
        self._looked_at = 0

    def submit(self, **options: object) -> RequestId:
        request = self.world.submit((5, 6, 7), **options)  # type: ignore[arg-type]
        session = self.world.core.sessions()[request]
        self.opened[request] = Opened(
            request,
            session.generation,
            Origin("secret"),
            "tiny",
            "digest",
            self._now_ms(),
            session.deadline_ms,
            self.life,
        )
        return request

    def _now_ms(self) -> int:
        return int(self.world.clock.wall_s() * 1000)

    def follow(self) -> list[TokenKept | Ended]:
        """All events so far, as they would be written."""
        effects = self.world.effects
        for effect in effects[self._looked_at :]:
            if not isinstance(effect, ev.Emit) or effect.past:
                continue
            match effect.event:
                case Delta(index, int() as token, _, logprob):
                    kept = TokenKept(effect.request, index, token, self._now_ms(), logprob)
                    self.events.append(kept)
                case Finished() | Broken() as end:
                    self.events.append(Ended(effect.request, self._now_ms(), end))
        self._looked_at = len(effects)
        return self.events

    def left(self) -> list[StoredRequest]:
        ended = {e.request for e in self.events if isinstance(e, Ended)}
        tokens = [e for e in self.events if isinstance(e, TokenKept)]
        return [
            StoredRequest(opened, tuple(t for t in tokens if t.request == request), None)
            for request, opened in self.opened.items()
            if request not in ended
        ]

    def restart(self, lost: int = 0, down_s: float = 2.0) -> World:
        """Kills the router when all but the last `lost` events had been written. Its nodes answer
        what they were given, too late."""
        old = self.world
        self.events = self.events[: max(0, len(self.follow()) - lost)]
        self.life += 1
        new = self.world = World()
        new.clock.advance(old.clock.now_s() - new.clock.now_s() + down_s)
        # Those that ended, and were written so, the new one never hears of.
        new._ids = old._ids
        for stored in self.left():
            new.streams[stored.opened.request] = Stream(stored.opened.generation)
            new.handle(event_of(stored, self.life, new.clock.wall_s()))
        self._looked_at = 0
        self.follow()
        for row in old.in_flight:
            if row.request in new.streams and new.streams[row.request].end is None:
                new.tokens(row.route.hops[-1].node, old.token_of(row))
        return new

    def texts(self) -> dict[RequestId, str]:
        return {request: stream.text for request, stream in self.world.streams.items()}


def test_a_restored_request_goes_on_where_it_was() -> None:
    lives = Lives()
    request = lives.submit(sampling=SamplingParams(max_tokens=20, seed=3, ignore_eos=True))
    for _ in range(7):
        lives.world.answer()
    before = lives.world.streams[request]
    new = lives.restart()
    assert new.streams[request].tokens == before.tokens
    assert new.streams[request].text == before.text
    assert not new.in_flight, "no node is back yet"
    new.join_all()
    row = new.in_flight[0]
    assert row.attempt == ATTEMPTS_PER_LIFE
    assert row.token_ids == (5, 6, 7, *before.tokens)
    new.run()
    end = new.streams[request].end
    assert isinstance(end, Finished)
    assert end.reroutes == 1
    assert (end.prompt_tokens, end.output_tokens) == (3, 20)
    assert end.total_s == pytest.approx(2.0, abs=0.01)
    assert end.ttft_s == pytest.approx(0.0, abs=0.01)
    assert new.streams[request].tokens == undisturbed(before.generation)[0]


def test_attempts_rise_with_every_life() -> None:
    lives = Lives()
    lives.submit(sampling=SamplingParams(max_tokens=20, seed=3, ignore_eos=True))
    for restarts in range(1, 5):
        lives.restart()
        lives.world.join_all()
        assert [r.attempt for r in lives.world.in_flight] == [restarts * ATTEMPTS_PER_LIFE]
        # And within a life, as ever.
        lives.world.lose(lives.world.in_flight[-1].route.hops[0].node)
        assert lives.world.in_flight[-1].attempt == restarts * ATTEMPTS_PER_LIFE + 1


def test_it_waits_for_the_cluster_until_its_deadline() -> None:
    lives = Lives()
    request = lives.submit(deadline_s=10.0)
    new = lives.restart(down_s=4.0)
    with pytest.raises(NotServing):
        new.submit((1, 2))
    new.pass_time(5)
    assert new.streams[request].end is None
    new.pass_time(2)
    end = new.streams[request].end
    assert isinstance(end, Broken)
    assert isinstance(end.error, NotServing)
    assert "no answer within 10 s" in end.error.message


def test_a_deadline_that_passed_while_the_router_was_away() -> None:
    lives = Lives()
    request = lives.submit(deadline_s=10.0)
    new = lives.restart(down_s=60.0)
    new.join_all()
    new.pass_time(1)
    end = new.streams[request].end
    assert isinstance(end, Broken)
    assert isinstance(end.error, DeadlineExceeded)


def test_new_requests_wait_too_when_the_core_is_told_to_expect_the_nodes() -> None:
    lives = Lives()
    new = lives.restart()
    new.core.cluster.expect_back()
    request = new.submit((1, 2))
    assert new.streams[request].end is None
    new.pass_time(31)
    with pytest.raises(NotServing):
        new.submit((1, 2))
    new.join_all()
    new.run()
    assert isinstance(new.streams[request].end, Finished)


def test_a_text_that_had_ended_but_for_its_end() -> None:
    """The last token was written, the end not: it follows at once, without any node."""
    lives = Lives()
    request = lives.submit(sampling=SamplingParams(max_tokens=5, seed=3, ignore_eos=True))
    lives.world.run()
    assert isinstance(lives.follow()[-1], Ended)
    new = lives.restart(lost=1)
    end = new.streams[request].end
    assert isinstance(end, Finished)
    assert end.finish_reason == "length"
    assert new.core.sessions() == {}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_kill_point_gives_what_one_undisturbed_machine_gives(data: st.DataObject) -> None:
    """The world checks every token against the undisturbed ones, and the core's books, at each
    step; here restarts come at any of them, with the last events written or not."""
    lives = Lives()
    texts: dict[RequestId, str] = {}
    for _ in range(data.draw(st.integers(5, 60))):
        match data.draw(st.sampled_from("ssaaaaaaalkk")):
            case "s" if lives.world.core.cluster.serving:
                most = data.draw(st.integers(1, 12))
                lives.submit(
                    sampling=SamplingParams(max_tokens=most, seed=data.draw(st.integers(0, 9)))
                )
            case "a":
                if lives.world.in_flight:
                    lives.world.answer(data.draw(st.integers(0, 20)) % len(lives.world.in_flight))
            case "l":
                names = sorted(lives.world.members)
                if len(names) == 4:
                    lives.world.lose(data.draw(st.sampled_from(names)))
            case "k":
                for request, text in lives.texts().items():
                    known = texts.get(request, "")
                    assert text.startswith(known) or known.startswith(text)
                    texts[request] = max(text, known, key=len)
                lives.restart(lost=data.draw(st.integers(0, 3)))
                if data.draw(st.booleans()):
                    lives.world.join_all()
    lives.world.join_all()
    lives.world.run()
    assert lives.world.core.sessions() == {}
    for stored in lives.left():
        end = lives.world.streams[stored.opened.request].end
        assert isinstance(end, Finished), "accepted, and lost"
