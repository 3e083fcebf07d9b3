"""Tokens that go from the last hop to the first, in a whole cluster: the same streams as by way of
the router, whatever ends or breaks them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import nodes.daemon
from helix_mq.errors import DeadlineExceeded
from helix_mq.features import VERIFY
from helix_mq.ids import NodeId
from helix_mq.sampling import SamplingParams
from helix_mq.token_return import TokenReturn
from router.service import Broken, Delta, Finished, Generation
from router.settings import SpeculationSection
from router.speculation import DraftStatistics
from tests.cluster import DEADLINE_S, Cluster, Result, cluster, greedy
from tests.held_steps import held_steps
from tests.router.streams import results, rows_sent, seen

CHAIN = {"a": "0:2", "b": "2:4", "c": "4:6"}
ALONE = {"a": "0:6"}
BACK = (NodeId("c"), NodeId("a"))
LONG = greedy(tuple(range(40)), 100)


def generations() -> list[Generation]:
    """Ends of every kind, and every kind of sampling that has a state."""
    sampled = SamplingParams(temperature=0.9, seed=7, max_tokens=40, ignore_eos=True)
    penalised = SamplingParams(
        temperature=0.8,
        seed=11,
        max_tokens=40,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        logprobs=True,
        top_logprobs=3,
    )
    short = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    return [
        greedy((1, 2, 3), 30),
        greedy(tuple(range(150)), 25),
        Generation((5, 6), sampled),
        Generation((5, 6, 7), penalised),
        Generation((9,), short),
        Generation((9, 8), SamplingParams(temperature=1.0, seed=3, max_tokens=200)),
        Generation((4, 4), SamplingParams(temperature=1.0, seed=5, max_tokens=30, min_tokens=9)),
    ]


def stopped(like: Result, generation: Generation) -> list[Generation]:
    """The same request, ended by a token of its own output and by a piece of its own text."""
    sampling = generation.sampling
    token = like.token_ids[12]
    by_token = SamplingParams(
        sampling.temperature, max_tokens=40, ignore_eos=True, stop_token_ids=(token,)
    )
    piece = like.text[len(like.text) // 2 :][:3]
    assert piece
    return [
        Generation(generation.prompt_ids, by_token),
        Generation(generation.prompt_ids, sampling, stop=(piece,)),
    ]


async def test_streams_are_those_of_router_return(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, ALONE, token_return="router") as c:
        asked = generations()
        asked += stopped(await c.run(asked[0]), asked[0])
        by_router = await results(c, asked)
        assert all(row.spec is None or not row.direct for row in rows_sent(c))
    ends = {(r.finish.finish_reason, r.finish.stop_reason is None) for r in by_router}
    assert ends == {("length", True), ("stop", True), ("stop", False)}, "not every end was met"
    for placement in (CHAIN, ALONE):
        async with cluster(tiny_folder, placement, token_return="direct", dead_after_s=30.0) as c:
            sent = rows_sent(c)
            straight = await results(c, asked)
            assert [seen(r) for r in straight] == [seen(r) for r in by_router]
            assert [(row.position, row.direct) for row in sent] == [(0, True)] * len(asked)
            assert not any(r.finish.reroutes for r in straight)
            await c.quiet()
            for daemon in c.daemons.values():
                assert daemon.worker is not None
                assert len(daemon.worker._returns) == 0


@pytest.mark.parametrize("wanted", ["auto", "router"])
async def test_on_one_device_decodes_travel_together(
    tiny_folder: Path, wanted: TokenReturn
) -> None:
    asked = [greedy((n, 2, 3), 60) for n in range(1, 7)] + generations()
    async with cluster(tiny_folder, ALONE, token_return="router") as c:
        alone = await results(c, asked)
    async with cluster(
        tiny_folder, CHAIN, token_return=wanted, device_id="one", dead_after_s=30.0
    ) as c:
        sent = rows_sent(c)
        assert [seen(r) for r in await results(c, asked)] == [seen(r) for r in alone]
        prompts = [row for row in sent if row.spec is not None]
        assert len(prompts) == len(asked)
        assert all(row.together and row.direct is (wanted == "auto") for row in prompts)
        await c.quiet()
        for daemon in c.daemons.values():
            assert daemon.worker is not None
            assert len(daemon.worker._convoy) == 0


async def test_on_one_device_a_node_that_dies_holds_nobody_up(tiny_folder: Path) -> None:
    asked = [greedy((n, 2, 3), 60) for n in range(1, 7)]
    async with cluster(tiny_folder, ALONE, token_return="router") as c:
        alone = await results(c, asked)
    async with cluster(tiny_folder, CHAIN, device_id="one", dead_after_s=1.0) as c:
        runs, going = zip(*(under_way(c, generation) for generation in asked), strict=True)
        async with asyncio.timeout(DEADLINE_S):
            await going[0].wait()
        await c.kill("b")
        await c.add_node("b", device_id="one")
        assert [(await run).token_ids for run in runs] == [r.token_ids for r in alone]


async def test_first_hops_draft(tiny_folder: Path) -> None:
    line = (7, 8, 9, 30, 31, 200, 11, 12)
    sampled = SamplingParams(
        temperature=0.7, seed=9, max_tokens=60, ignore_eos=True, repetition_penalty=1.05,
        logit_bias=tuple((token, 6.0) for token in line),
    )  # fmt: skip
    biased = ((7, 60.0),)
    monotonous = SamplingParams(0.0, max_tokens=60, ignore_eos=True, logit_bias=biased)
    asked = [Generation(line * 8, monotonous), Generation(line * 8, sampled), greedy((5,), 60)]
    off = SpeculationSection(enabled=False)
    async with cluster(tiny_folder, ALONE, token_return="router", speculation=off) as c:
        wanted = [await c.run(generation) for generation in asked]
    for placement in (CHAIN, ALONE):
        async with cluster(tiny_folder, placement, token_return="direct", dead_after_s=30.0) as c:
            first = c.daemons["a"].worker
            assert first is not None
            before, drafted, accepted = 0, [], []
            for generation, alone in zip(asked, wanted, strict=True):
                result = await c.run(generation)
                assert seen(result) == seen(alone)
                drafted.append(result.finish.drafted_tokens)
                accepted.append(result.finish.accepted_tokens)
                await c.quiet()
                # The prompt; then a token of each round, and its drafts. Of 59 tokens behind the
                # first, those that were right drafts took no round.
                tokens, rounds = first.statistics().tokens, 59 - accepted[-1]
                assert tokens - before == len(generation.prompt_ids) + rounds + drafted[-1]
                before = tokens
            # A text that repeats itself takes far fewer rounds.
            assert accepted[0] > 20
            counts = DraftStatistics(sum(drafted), sum(accepted))
            assert c.app.core.statistics().drafts == counts
            assert len(first._returns) == 0
    async with cluster(
        tiny_folder, CHAIN, token_return="direct", speculation=off, dead_after_s=30.0
    ) as c:
        assert seen(await c.run(asked[0])) == seen(wanted[0])
        await c.quiet()
        first = c.daemons["a"].worker
        assert first is not None
        # The prompt in as many steps as it may take, then token by token.
        assert first.statistics().tokens == len(line) * 8 + 59


async def test_who_cannot_is_not_asked_to(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes.daemon, "FEATURES", (VERIFY,))
    async with cluster(tiny_folder, CHAIN, token_return="direct") as c:
        sent = rows_sent(c)
        await c.run(greedy((1, 2, 3), 6))
        assert not any(row.direct for row in sent)


async def test_a_cancelled_request_ends_the_loop(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, CHAIN, token_return="direct") as c:
        stream = c.app.submit(greedy((1, 2, 3), 400))
        got = 0
        async for event in stream:
            match event:
                case Delta():
                    got += 1
                    if got == 5:
                        c.app.cancel(stream.request)
                case Finished():
                    assert event.finish_reason == "cancelled"
                case Broken():
                    raise event.error
        await c.quiet()
        steps = [d.worker.statistics().steps for d in c.daemons.values() if d.worker is not None]
        assert max(steps) < 100, "it went on for itself"


async def test_a_deadline_ends_the_loop(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, CHAIN, token_return="direct") as c:
        with held_steps(c) as held:
            held.open()

            def in_the_middle(delta: Delta) -> None:
                if delta.index == 5:
                    held.shut()

            with pytest.raises(DeadlineExceeded):
                await c.run(greedy((1, 2, 3), 480, deadline_s=0.3), in_the_middle)


def under_way(c: Cluster, generation: Generation) -> tuple[asyncio.Task[Result], asyncio.Event]:
    """A request, and what tells at once that some of its tokens have come: it may soon be over."""
    going = asyncio.Event()

    def seen_some(delta: Delta) -> None:
        if delta.index >= 5:
            going.set()

    return asyncio.create_task(c.run(generation, seen_some)), going


_UNDISTURBED: dict[Path, Result] = {}


async def undisturbed(folder: Path) -> Result:
    """The long request on one node; run once for all tests."""
    if folder not in _UNDISTURBED:
        async with cluster(folder, ALONE, token_return="router") as c:
            _UNDISTURBED[folder] = await c.run(LONG)
    return _UNDISTURBED[folder]


async def broken(
    folder: Path, fault: Callable[[Cluster], Awaitable[None]], dead_after_s: float = 60.0
) -> Result:
    """A long request, with a fault while its tokens come. Nodes that are only late are not dead."""
    wanted = await undisturbed(folder)
    async with cluster(folder, CHAIN, token_return="direct", dead_after_s=dead_after_s) as c:
        running, going = under_way(c, LONG)
        async with asyncio.timeout(DEADLINE_S):
            await going.wait()
            await fault(c)
        result = await running
        assert result.token_ids == wanted.token_ids
        assert result.text == wanted.text
    return result


@pytest.mark.parametrize("victim", ["a", "c"])
async def test_a_node_that_dies_midway_costs_no_token(tiny_folder: Path, victim: str) -> None:
    async def kill(c: Cluster) -> None:
        await c.kill(victim)
        await c.add_node(victim)

    assert (await broken(tiny_folder, kill, dead_after_s=1.0)).finish.reroutes >= 1


async def test_without_its_link_to_the_first_hop_tokens_go_by_the_router(tiny_folder: Path) -> None:
    async def cut(c: Cluster) -> None:
        plane = c.daemons["c"]._plane
        whole = {name: link.address for name, link in plane._out.items()}
        sent = rows_sent(c)
        links = c.app.core.cluster.links
        await plane.set_peers({n: address for n, address in whole.items() if n != "a"})
        await c.until(lambda: BACK in links.closed, "the router knows")
        await c.until(lambda: len(sent) > 3, "it goes on")
        assert (sent[0].position, sent[0].attempt, sent[0].direct) == (0, 1, False)
        assert all(row.position for row in sent[1:4]), "by the router, token for token"
        await plane.set_peers(whole)
        await c.until(lambda: BACK not in links.closed, "it is used again")
        sent.clear()
        await c.run(greedy((1, 2), 10))
        assert [row.direct for row in sent if row.position == 0] == [True]

    assert (await broken(tiny_folder, cut)).finish.reroutes == 1


async def test_tokens_in_a_link_that_breaks_are_computed_anew(tiny_folder: Path) -> None:
    async def lose(c: Cluster) -> None:
        plane = c.daemons["c"]._plane
        link = plane._out["a"]
        assert link.connection is not None
        # What it sends now gets nowhere, and then it hears that its link broke.
        send, lost = link.connection.send, asyncio.Event()

        def swallow(parts: object) -> bool:
            lost.set()
            return True

        link.connection.send = swallow  # type: ignore[method-assign,assignment]
        await lost.wait()
        link.connection.send = send  # type: ignore[method-assign]
        c.daemons["c"]._on_link_lost("a")

    assert (await broken(tiny_folder, lose)).finish.reroutes == 1


async def test_tokens_lost_on_the_way_to_the_router_are_missed(tiny_folder: Path) -> None:
    async def lose(c: Cluster) -> None:
        plane = c.daemons["c"]._plane
        send, dropped = plane.send, asyncio.Event()

        def drop(peer: str, *what: object) -> bool:
            if peer == "@router" and not dropped.is_set():
                dropped.set()
                return True
            return send(peer, *what)  # type: ignore[arg-type]

        plane.send = drop  # type: ignore[method-assign,assignment]
        await dropped.wait()

    assert (await broken(tiny_folder, lose)).finish.reroutes == 1
