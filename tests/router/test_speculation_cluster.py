"""Drafts in a whole cluster: the same streams as without them, whatever ends or breaks them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import nodes.daemon
from helix_mq.features import DIRECT
from helix_mq.ids import NodeId
from helix_mq.sampling import SamplingParams
from router import events as ev
from router.service import Generation
from router.settings import SpeculationSection
from tests.cluster import Result, cluster, greedy
from tests.journey.test_cluster import reference
from tests.router.streams import results, rows_sent, seen

SLICES = {
    "one": {"a": "0:6"},
    "three, overlapping": {"a": "0:3", "b": "2:5", "c": "4:6"},
}
OFF = SpeculationSection(enabled=False)
LINE = (7, 8, 9, 30, 31, 200, 11, 12)
PROMPTS = [LINE * 8, tuple((i * i * 31 + 7 * i) % 256 for i in range(70)), (5,)]
"""Much of the first stands in it before, hardly anything of the second."""


def numbers(result: Result) -> list[float]:
    """Log probabilities, of each token and of the best ones."""
    given = [d.logprob for d in result.deltas if d.logprob is not None]
    return [number for one in given for number in (one.logprob, *(p for _, p in one.top))]


@pytest.mark.parametrize("placement", SLICES.values(), ids=SLICES.keys())
async def test_greedy_tokens_equal_transformers(
    tiny_folder: Path, placement: dict[str, str]
) -> None:
    async with cluster(tiny_folder, placement, token_return="router") as c:
        sent = rows_sent(c)
        found = await results(c, [greedy(prompt, 50) for prompt in PROMPTS])
        counts = c.app.core.statistics().drafts
    for prompt, result in zip(PROMPTS, found, strict=True):
        assert result.token_ids == reference(tiny_folder, prompt, 50)
    decodes = [row for row in sent if row.position]
    assert any(row.verify for row in decodes)
    assert counts.drafted == sum(len(row.token_ids) - 1 for row in decodes)
    assert 0 < counts.accepted <= counts.drafted
    # Each token came as an accepted draft or behind a row of its own.
    assert len(sent) + counts.accepted == 3 * 50
    # None was drafted beyond the last token there may be.
    for request, prompt in enumerate(PROMPTS):
        rows = [row for row in sent if row.request == sent[request].request]
        assert max(row.position + len(row.token_ids) for row in rows) < len(prompt) + 50


def every_kind() -> list[Generation]:
    """Sampling of every kind that has a state, on texts that repeat."""
    biased = tuple((token, 6.0) for token in LINE)

    def some(prompt: tuple[int, ...], **sampling: object) -> Generation:
        return Generation(prompt, SamplingParams(**sampling))  # type: ignore[arg-type]

    return [
        some(LINE * 6, temperature=0.9, seed=7, max_tokens=40, logit_bias=biased),
        some(LINE * 6, temperature=0.3, seed=8, max_tokens=40, top_p=0.9, logit_bias=biased),
        some(LINE * 6, temperature=0.0, max_tokens=40, logprobs=True, top_logprobs=3),
        some(LINE * 6, temperature=0.0, max_tokens=40, repetition_penalty=1.05, ignore_eos=True),
        some(
            LINE * 6, temperature=0.7, seed=9, max_tokens=40, frequency_penalty=0.1,
            presence_penalty=0.1, logit_bias=biased, logprobs=True,
        ),
        some(LINE * 6, temperature=0.0, max_tokens=40, min_tokens=20, logit_bias=((256, 40.0),)),
        some(LINE * 6, temperature=0.0, max_tokens=1),
        some(LINE * 6, temperature=0.0, max_tokens=2),
    ]  # fmt: skip


async def test_streams_are_those_without_drafts(tiny_folder: Path) -> None:
    asked = every_kind()
    async with cluster(tiny_folder, SLICES["one"], speculation=OFF, token_return="router") as c:
        whole = await c.run(greedy(LINE * 8, 40))
        for at in (5, 17, 30):
            # Ended by a piece of its own text, and by a token of its own.
            piece = "".join(d.text for d in whole.deltas[at : at + 3])
            assert piece
            asked.append(greedy(LINE * 8, 40, stop=(piece,)))
            stop = SamplingParams(0.0, stop_token_ids=(whole.token_ids[at],), ignore_eos=True)
            asked.append(Generation(LINE * 8, stop))
        plain = await results(c, asked)
        assert c.app.core.statistics().drafts.drafted == 0
    assert {r.finish.finish_reason for r in plain} == {"length", "stop"}
    async with cluster(tiny_folder, SLICES["three, overlapping"], token_return="router") as c:
        drafted = [await c.run(generation) for generation in asked]
        counts = c.app.core.statistics().drafts
    for generation, one, other in zip(asked, drafted, plain, strict=True):
        assert seen(one) == seen(other), generation
        # Kernels for one token and for several add up in other orders.
        assert numbers(one) == pytest.approx(numbers(other), abs=1e-4)
    assert counts.accepted > 20


async def test_a_node_lost_with_drafts_under_way_changes_no_token(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = {"a": "0:3", "b": "3:6", "c": "3:6"}
    asked = [greedy(LINE * n, 90) for n in (5, 6, 7)]
    async with cluster(tiny_folder, placement, dead_after_s=1.0, token_return="router") as c:
        lost: asyncio.Future[NodeId] = asyncio.get_running_loop().create_future()
        handle = c.app.core.handle

        def watched(event: ev.Event) -> list[ev.Effect]:
            """Finds a last hop with drafts of a text that is under way."""
            effects = handle(event)
            for s in c.app.core.sessions().values():
                if s.drafts and s.route is not None and not lost.done():
                    lost.set_result(s.route.nodes[-1])
            return effects

        # Not looked for now and then: between two looks they may be there each time.
        monkeypatch.setattr(c.app.core, "handle", watched)
        running = [asyncio.create_task(c.run(generation)) for generation in asked]
        await c.kill(await lost)
        ended = await asyncio.gather(*running)
    assert any(result.finish.reroutes for result in ended)
    for generation, result in zip(asked, ended, strict=True):
        assert result.token_ids == reference(tiny_folder, generation.prompt_ids, 90)


async def test_nodes_that_cannot_verify_get_no_drafts(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes.daemon, "FEATURES", (DIRECT,))
    async with cluster(tiny_folder, SLICES["three, overlapping"], token_return="router") as c:
        sent = rows_sent(c)
        await c.run(greedy(LINE * 8, 40))
    assert not any(row.verify for row in sent)
    assert len(sent) == 40


async def test_many_requests_at_once_share_the_drafts(tiny_folder: Path) -> None:
    few = SpeculationSection(drafts_at_once=4)
    async with cluster(tiny_folder, SLICES["one"], speculation=few, token_return="router") as c:
        sent = rows_sent(c)
        await results(c, [greedy(LINE * 8, 30) for _ in range(6)])
        crowded = max(len(row.token_ids) for row in sent if row.position)
        sent.clear()
        await c.run(greedy(LINE * 8, 40))
        alone = max(len(row.token_ids) for row in sent if row.position)
    assert alone == 5
    assert crowded <= 3
