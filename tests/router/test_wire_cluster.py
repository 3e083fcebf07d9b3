"""A cluster whose links carry activations in fewer bits: answers stay near, old nodes get all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.distance import distant_cluster
from helix_mq.features import FEATURES, WIRE8
from helix_mq.sampling import SamplingParams
from router.link_forms import Activations
from router.service import Generation
from router.settings import LinksSection
from tests.cluster import DEADLINE_S, Cluster, cluster, greedy

PROMPT = tuple((7 * i) % 250 for i in range(40))
THIRDS = {"a": "0:2", "b": "2:4", "c": "4:6"}


async def first_token(c: Cluster) -> dict[int, float]:
    """Logprobs of the likeliest tokens after PROMPT."""
    sampling = SamplingParams(
        temperature=0.0, max_tokens=1, ignore_eos=True, logprobs=True, top_logprobs=20
    )
    result = await c.run(Generation(PROMPT, sampling))
    said = result.deltas[0].logprob
    assert said is not None
    return dict(said.top)


def links_forms(c: Cluster) -> Sequence[str]:
    """What the nodes were told to send each other."""
    return [c.daemons[a]._slices.formats.of(b) for a, b in (("a", "b"), ("b", "c"))]


@pytest.mark.parametrize(
    ("form", "near"), [("same", 0.0), ("bfloat16", 0.1), ("float16", 0.02), ("int8", 0.2)]
)
async def test_logits_are_near_those_of_one_machine(
    tiny_folder: Path, form: Activations, near: float
) -> None:
    async with cluster(tiny_folder, {"a": "0:6"}) as c:
        alone = await first_token(c)
    async with cluster(tiny_folder, THIRDS, links=LinksSection(activations=form)) as c:
        told = "" if form == "same" else form
        await c.until(lambda: set(links_forms(c)) == {told}, "the nodes know")
        far = await first_token(c)
        sent = {link.peer: link.sent_bytes for link in c.daemons["a"].figures().links}
    both = alone.keys() & far.keys()
    assert len(both) >= 15
    worst = max(abs(alone[t] - far[t]) for t in both)
    assert worst <= near + 1e-4
    if form != "same":
        # Something did change: these are not full rows.
        assert worst > 1e-5
    width = {"same": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0625}[form] * 64
    assert sent["b"] - 700 <= len(PROMPT) * width <= sent["b"]


async def test_a_node_of_an_older_release_gets_rows_that_it_knows(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodes.daemon.FEATURES", tuple(f for f in FEATURES if f != WIRE8))
    async with cluster(tiny_folder, THIRDS, links=LinksSection(activations="int8")) as c:
        await c.until(lambda: set(links_forms(c)) == {"bfloat16"}, "the nodes know")
        assert await first_token(c)


async def test_auto_narrows_a_link_that_is_measured_slow_and_no_other(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real sockets and trains of probes: 300 KB/s between two nodes, loopback between the others.

    The limits are scaled down with the slow link, so that loopback is far above them on a busy
    machine, too.
    """
    monkeypatch.setattr("router.link_forms.AUTO_INT8_BYTES_PER_S", 1e6)
    monkeypatch.setattr("router.link_forms.AUTO_BFLOAT16_BYTES_PER_S", 1.5e6)
    monkeypatch.setattr("helix_mq.link_probe._BEGIN_WITHIN_S", 0.0)

    def delay_s(one: str, other: str) -> float:
        return 0.001 if (one, other) == ("a", "b") else 0.0

    settings = {"links": LinksSection(activations="auto")}
    async with (
        asyncio.timeout(DEADLINE_S),
        distant_cluster(tiny_folder, THIRDS, delay_s, settings=settings, bytes_per_s=3e5) as c,
    ):

        def told(one: str, other: str) -> str:
            return c.daemons[one]._slices.formats.of(other)

        def sent() -> dict[tuple[str, str], int]:
            return {
                (name, link.peer): link.sent_bytes
                for name, daemon in c.daemons.items()
                for link in daemon.figures().links
            }

        def measured(one: str, other: str) -> float:
            links = {(x.sender, x.receiver): x for x in c.app.status().links}
            return links[one, other].probed_bytes_per_s

        while True:
            if told("a", "b") and measured("b", "c"):
                break
            await asyncio.sleep(0.01)
        assert measured("a", "b") < 1e6
        assert measured("b", "c") > 1.5e6
        before = sent()
        await c.run(greedy(PROMPT, 1))
        after = sent()
        assert (told("a", "b"), told("b", "c"), told("b", "a")) == ("int8", "", "")
    rows = len(PROMPT) * 64
    narrow, wide = (after[ends] - before[ends] for ends in (("a", "b"), ("b", "c")))
    assert narrow - 700 <= rows * 1.0625 <= narrow
    assert wide - 700 <= rows * 4 <= wide
