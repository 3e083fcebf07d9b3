"""The router's core on a virtual clock: admission, streams, faults, deadlines, cancels."""

from __future__ import annotations

import pytest

from helix_mq.errors import (
    CapacityError,
    ContextExceeded,
    DeadlineExceeded,
    NotServing,
    QueueFull,
)
from helix_mq.ids import NodeId, RequestId
from helix_mq.layers import LayerRange
from helix_mq.messages.control import Assign
from helix_mq.messages.data import Refused, RefusedItem, ReleaseItem, TokenItem, Tokens
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.core import CoreSettings
from router.refusals import MAX_REROUTES
from router.service import Broken, Finished
from tests.router.world import PAGE_TOKENS, World, undisturbed

PAIR = {"a": LayerRange(0, 3), "b": LayerRange(3, 6)}


@pytest.fixture
def world() -> World:
    world = World()
    world.join_all()
    return world


@pytest.fixture
def pair() -> World:
    """Two nodes, each indispensable."""
    world = World(slices=PAIR)
    world.join_all()
    return world


def ended(world: World, request: RequestId) -> Finished | Broken:
    end = world.streams[request].end
    assert end is not None
    return end


def broken(world: World, request: RequestId) -> Exception:
    end = ended(world, request)
    assert isinstance(end, Broken)
    return end.error


def test_a_stream_is_what_one_machine_gives(world: World) -> None:
    sampling = SamplingParams(max_tokens=40, seed=9, ignore_eos=True)
    request = world.submit((4, 5, 6), sampling)
    world.run()
    stream = world.streams[request]
    tokens, _ = undisturbed(stream.generation)
    assert stream.tokens == tokens
    assert stream.text == "".join(chr(33 + t) for t in tokens if t != 96)
    end = ended(world, request)
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.prompt_tokens, end.output_tokens) == ("length", 3, 40)
    assert not world.core.sessions()


def test_a_stop_string_ends_the_stream_before_it(world: World) -> None:
    sampling = SamplingParams(max_tokens=40, seed=9, ignore_eos=True)
    whole = world.submit((4, 5, 6), sampling)
    world.run()
    text = world.streams[whole].text
    stop = text[10:13]
    other = world.submit((4, 5, 6), sampling, stop=(stop,))
    while world.streams[other].end is None:
        # The world's own check compares with the unstopped run, which this one leaves early.
        row = world.in_flight.pop()
        item = world.token_of(row)
        if len(world.streams[other].tokens) == text.find(stop) + len(stop) - 1:
            effects = world.core.handle(_tokens(row, item))
            break
        world.tokens(row.route.hops[-1].node, item)
    emitted = [e.event for e in effects if isinstance(e, ev.Emit)]
    end = emitted[-1]
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.stop_reason) == ("stop", stop)
    assert world.streams[other].text == text[: text.find(stop)]
    assert not world.core.sessions()


def _tokens(row: ev.SendRow, item: TokenItem) -> ev.TokensArrived:
    return ev.TokensArrived(Tokens(7, row.route.hops[-1].node, (item,)))


def test_late_repeated_and_foreign_tokens_change_nothing(world: World) -> None:
    request = world.submit()
    row = world.in_flight[0]
    world.answer()
    last, item = world.answered[0]
    before = list(world.streams[request].tokens)
    wrong = [
        (last, item),
        (last, TokenItem(request, 1, item.position + 1, item.token)),
        (last, TokenItem(request, 0, item.position + 2, item.token)),
        ("nobody", TokenItem(request, 0, item.position + 1, item.token)),
        (row.route.hops[0].node, TokenItem(request, 0, item.position + 1, item.token)),
        ("nobody", TokenItem(999, 0, item.position + 1, item.token)),
    ]
    for node, bad in wrong:
        assert world.tokens(node, bad) == []
    assert world.streams[request].tokens == before


def test_who_sends_tokens_of_what_is_over_is_told_to_free_it(world: World) -> None:
    """A stopped process that was taken for dead goes on, and passes rows to one that has started
    since: what it was told before it died is not known to that."""
    request = world.submit()
    row = world.in_flight[0]
    last, first = row.route.hops[-1].node, row.route.hops[0].node
    foreign = TokenItem(999, 0, 3, 5)
    assert world.tokens(last, foreign) == [ev.SendRelease(last, ReleaseItem(999, 0))]
    world.lose(first)
    old = TokenItem(request, row.attempt, 3, 5)
    assert world.core.sessions()[request].attempt > row.attempt
    assert world.tokens(last, old) == [ev.SendRelease(last, ReleaseItem(request, row.attempt))]


def test_losing_a_node_reroutes_and_releases_on_the_others(world: World) -> None:
    requests = [world.submit((i, 2, 3)) for i in range(1, 9)]
    for _ in range(12):
        world.answer()
    crossed = [r for r, s in world.core.sessions().items() if s.route and "b" in s.route.nodes]
    assert crossed
    effects = world.lose("b")
    released = {e.item.request for e in effects if isinstance(e, ev.SendRelease)}
    assert released == set(crossed)
    world.in_flight = [r for r in world.in_flight if "b" not in r.route.nodes]
    world.run()
    for request in requests:
        end = ended(world, request)
        assert isinstance(end, Finished)
        assert end.reroutes == (1 if request in crossed else 0)


def test_with_layers_missing_requests_wait_and_say_which(pair: World) -> None:
    request = pair.submit()
    pair.answer()
    pair.lose("b")
    assert not pair.core.cluster.serving
    assert "layers 3-5 are on no live node" in pair.core.cluster.why_not_serving()
    assert "b" in pair.core.cluster.why_not_serving()
    pair.in_flight.clear()
    waiting = pair.submit((9, 9))
    pair.join("b")
    pair.run()
    assert isinstance(ended(pair, request), Finished)
    assert isinstance(ended(pair, waiting), Finished)


def test_after_the_time_to_recover_new_requests_are_refused(pair: World) -> None:
    old = pair.submit()
    pair.in_flight.clear()
    pair.lose("b")
    pair.pass_time(31)
    with pytest.raises(NotServing, match="layers 3-5 are on no live node") as caught:
        pair.submit()
    assert caught.value.retry_after_s is not None
    assert caught.value.http_status == 503
    assert old in pair.core.sessions(), "what was accepted still waits"


def test_before_the_first_nodes_nothing_is_accepted() -> None:
    world = World(slices=PAIR)
    with pytest.raises(NotServing, match=r"layers 0-5 are on no live node; waiting for .*a, b"):
        world.submit()
    world.join("a")
    world.join("b", ready=False)
    with pytest.raises(NotServing, match=r"layers 3-5 .*b is loading layers 3-5"):
        world.submit()


def test_a_deadline_ends_a_waiting_and_a_running_request(pair: World) -> None:
    running = pair.submit(deadline_s=4.0)
    pair.answer()
    pair.pass_time(3)
    assert pair.streams[running].end is None
    pair.pass_time(2)
    error = broken(pair, running)
    assert isinstance(error, DeadlineExceeded)
    assert "1 of at most 8 tokens" in str(error)
    pair.lose("b")
    waiting = pair.submit(deadline_s=2.0)
    pair.pass_time(3)
    error = broken(pair, waiting)
    assert isinstance(error, NotServing)
    assert "layers 3-5" in str(error)


def test_rows_carry_the_deadline_as_unix_time(pair: World) -> None:
    pair.submit(deadline_s=10.0)
    assert pair.in_flight[0].deadline_ms == int((pair.clock.wall_s() + 10.0) * 1000)


def test_a_full_queue_refuses_with_a_time_to_come_back(pair: World) -> None:
    world = World(CoreSettings(max_waiting=2), PAIR)
    world.join("a", pages=9)
    world.join("b", pages=9)
    first = world.submit((1,) * 20, SamplingParams(max_tokens=20))
    waiting = [world.submit((2,) * 20, SamplingParams(max_tokens=20)) for _ in range(2)]
    assert world.core.statistics().waiting == 2
    with pytest.raises(QueueFull, match="2 requests are waiting") as caught:
        world.submit((3,) * 20, SamplingParams(max_tokens=20))
    assert caught.value.http_status == 503, "nobody's own share: it is the cluster that is full"
    assert caught.value.retry_after_s is not None
    assert 1.0 <= caught.value.retry_after_s <= 60.0
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        world.core.check_room("", 0, None)
    assert set(world.core.sessions()) == {first, *waiting}
    world.run()
    world.core.check_room("", 0, None)
    assert all(isinstance(ended(world, r), Finished) for r in [first, *waiting])


def test_what_cannot_fit_is_refused_at_once(pair: World) -> None:
    room = 60 // 3 * PAGE_TOKENS
    assert pair.core.output_budget(10) == room - 10
    with pytest.raises(ContextExceeded, match=f"at most {room}") as caught:
        pair.submit((1,) * 10, SamplingParams(max_tokens=room))
    assert caught.value.param == "max_tokens"
    with pytest.raises(ContextExceeded) as caught:
        pair.submit((1,) * (room + 1), SamplingParams(max_tokens=1))
    assert caught.value.param == "messages"
    with pytest.raises(ContextExceeded, match="empty"):
        pair.submit(())
    pair.submit((1,) * 10, SamplingParams(max_tokens=room - 10))


def test_a_request_too_long_for_what_is_left_does_not_block_the_others() -> None:
    """Accepted for a wide route; after the wide nodes are gone, shorter ones go past it."""
    world = World(slices={"a": LayerRange(0, 6), "b": LayerRange(0, 6)})
    world.join("a", pages=600)
    world.join("b", pages=60)
    long = world.submit((1,) * 400, SamplingParams(max_tokens=300), deadline_s=50.0)
    assert world.in_flight[0].route.nodes == ("a",)
    world.lose("a")
    world.in_flight.clear()
    short = world.submit((2,) * 10)
    world.run()
    assert isinstance(ended(world, short), Finished)
    assert world.streams[long].end is None
    world.join("a", pages=600)
    world.run()
    assert isinstance(ended(world, long), Finished)


def test_refused_for_want_of_pages_it_reserves_all_it_may_need(world: World) -> None:
    sampling = SamplingParams(max_tokens=200, seed=3, ignore_eos=True)
    request = world.submit((1,) * 10, sampling)
    world.answer()
    world.refuse(0, 1, "kv_exhausted")
    session = world.core.sessions()[request]
    assert session.squeezed
    assert session.expected_tokens(8) == 210
    assert (session.attempt, session.reroutes) == (1, 1)
    world.run()
    assert isinstance(ended(world, request), Finished)


@pytest.mark.parametrize("code", ["wrong_model", "context"])
def test_refusals_that_another_route_would_meet_end_the_request(world: World, code: str) -> None:
    request = world.submit()
    world.refuse(0, 0, code)
    error = broken(world, request)
    assert isinstance(error, CapacityError)
    assert f"because of {code}" in str(error)


def test_a_refused_deadline_is_the_requests_own(world: World) -> None:
    request = world.submit()
    world.refuse(0, 1, "deadline")
    assert isinstance(broken(world, request), DeadlineExceeded)


def test_refusals_without_end_are_given_up(world: World) -> None:
    request = world.submit()
    for _ in range(MAX_REROUTES):
        refusing = world.in_flight[0].route.hops[0].node
        world.refuse(0, 0, "step_failed")
        assert world.streams[request].end is None
        # The node that refused gets nothing for a moment; then it may be tried again.
        assert refusing not in [row.route.hops[0].node for row in world.in_flight]
        world.pass_time(1)
    world.refuse(0, 0, "step_failed")
    assert isinstance(broken(world, request), CapacityError)


def test_refusals_of_an_older_attempt_change_nothing(world: World) -> None:
    request = world.submit()
    world.refuse(0, 0, "link_lost")
    old = RefusedItem(request, 0, "link_lost", "again")
    assert world.handle(ev.RowsRefused(Refused(7, "a", (old,)))) == []
    assert world.core.sessions()[request].attempt == 1


def test_a_lost_link_of_the_router_moves_what_enters_there(world: World) -> None:
    requests = [world.submit((i,)) for i in range(6)]
    first = world.in_flight[0].route.hops[0].node
    entered = {r.request for r in world.in_flight if r.route.hops[0].node == first}
    world.in_flight = [r for r in world.in_flight if r.request not in entered]
    world.handle(ev.LinkLost(NodeId(first)))
    moved = {r for r, s in world.core.sessions().items() if s.attempt == 1}
    assert moved == entered
    world.run()
    assert all(isinstance(ended(world, r), Finished) for r in requests)


def test_releases_that_a_broken_link_may_have_lost_are_said_again(pair: World) -> None:
    done, cancelled = pair.submit((1,)), pair.submit((2,))
    pair.cancel(cancelled)
    pair.in_flight = [r for r in pair.in_flight if r.request == done]
    pair.run()
    effects = pair.handle(ev.LinkLost(NodeId("b")))
    again = [(e.node, e.item.request) for e in effects if isinstance(e, ev.SendRelease)]
    assert again == [("b", cancelled), ("b", done)]
    pair.lose("b")
    pair.join("b")
    assert pair.handle(ev.LinkLost(NodeId("b"))) == [], "a new process knows none of them"


def test_cancel_in_every_state(pair: World) -> None:
    running = pair.submit()
    pair.answer()
    pair.cancel(running)
    end = ended(pair, running)
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.output_tokens) == ("cancelled", 1)
    pair.in_flight.clear()
    pair.lose("b")
    queued = pair.submit()
    pair.cancel(queued)
    end = ended(pair, queued)
    assert isinstance(end, Finished)
    assert end.output_tokens == 0
    assert pair.handle(ev.Cancelled(queued)) == []
    assert pair.handle(ev.Cancelled(RequestId(12345))) == []


def test_interactive_goes_before_background_and_rerouted_keep_their_place(pair: World) -> None:
    pair.lose("b")
    background = pair.submit((1,), priority=1)
    pair.clock.advance(1.0)
    first = pair.submit((2,))
    pair.clock.advance(1.0)
    second = pair.submit((3,))
    pair.join("b")
    assert [row.request for row in pair.in_flight] == [first, second, background]


def test_a_process_that_comes_back_without_its_slice_gets_no_rows(pair: World) -> None:
    """The same incarnation registers again holding nothing: it must load before it serves."""
    request = pair.submit()
    pair.in_flight.clear()
    member = pair.core.cluster.membership.get("b")
    assert member is not None
    effects = pair.handle(ev.NodeRegistered(member.register))
    orders = [e.message for e in effects if isinstance(e, ev.ToNode)]
    assert [type(o) for o in orders] == [Assign]
    assert not pair.in_flight
    assert not pair.core.cluster.serving
    order = orders[0]
    assert isinstance(order, Assign)
    pair.ready("b", order)
    pair.run()
    assert isinstance(ended(pair, request), Finished)
