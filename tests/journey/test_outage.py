"""Survivors that cannot cover the model: what waits, what ends, what is refused, and the way back.
And no ghosts: who left is in no table, who comes back is somebody else. Real processes."""

from __future__ import annotations

import asyncio
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bench.chaos.catalogue import Ask, answer_all
from bench.chaos.cluster import ChaosCluster, Plan
from bench.chaos.picture import Picture
from bench.chaos.processes import Child
from bench.chaos.tiny_model import write_tiny_model
from helix_mq.client import Client
from helix_mq.errors import NotServing
from helix_mq.sdk.results import Completion, Token

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

HALVES = {"alpha": "0:4", "beta": "3:6", "gamma": "3:6"}
"""Nobody but alpha has the first layers."""
MISSING = "layers 0-2 are on no live node"
LONG = Ask((5, 6, 7), 900, 0.8, 5, ignore_eos=True)
SHORT = Ask((9, 8), 40, 1.0, 11, ignore_eos=True)


@dataclass(frozen=True)
class Run:
    """A request and what has come of it."""

    task: asyncio.Task[Completion]
    tokens: list[Token]


async def running(client: Client, ask: Ask, deadline_s: float) -> Run:
    """Once its first token is here."""
    tokens: list[Token] = []
    begun = asyncio.Event()

    async def run() -> Completion:
        async with client.stream(ask.prompt, **ask.options(deadline_s)) as stream:
            async for token in stream:
                tokens.append(token)
                begun.set()
            return stream.result()

    task = asyncio.create_task(run())
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=240)
    waiting.cancel()
    assert begun.is_set(), "no first token"
    return Run(task, tokens)


async def stopped_in_mid_stream(
    client: Client, node: Child, *deadlines_s: float
) -> list[asyncio.Task[Completion]]:
    """Requests which the node has stopped in the middle of, and with it for ever. It must be on
    every route."""
    while True:
        runs = [await running(client, LONG, deadline_s) for deadline_s in deadlines_s]
        node.signal(signal.SIGSTOP)
        if all(len(run.tokens) < LONG.max_tokens // 2 for run in runs):
            return [run.task for run in runs]
        # This process stood still meanwhile, and theirs did not.
        node.signal(signal.SIGCONT)
        await asyncio.gather(*(run.task for run in runs))


async def test_an_outage_ends_waits_refuses_and_heals(tmp_path: Path) -> None:
    plan = Plan(write_tiny_model(tmp_path / "model"), HALVES, settings="recover_s = 1.0")
    async with ChaosCluster(plan, tmp_path) as cluster:
        await cluster.whole(240)
        async with (
            Client(cluster.clients) as client,
            httpx.AsyncClient(base_url=cluster.url, timeout=240) as http,
        ):
            right = {k.ask: k.token_ids for k in await answer_all(client, [LONG, SHORT])}
            alpha = cluster.children["alpha"]
            patient, hasty = await stopped_in_mid_stream(client, alpha, 120.0, 6.0)
            await alpha.kill()
            await cluster.until(lambda p: not p.ready and MISSING in p.reason, "an outage", 10)

            # What waits ends at its deadline, with the layers in its error.
            with pytest.raises(NotServing, match=MISSING):
                await asyncio.wait_for(hasty, 240)
            # New requests are refused by now, and told when to come again.
            body = {"model": "chaos", "prompt": "x", "max_tokens": 4}
            answer = await http.post("/v1/completions", json=body)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert MISSING in answer.json()["error"]["message"]
            with pytest.raises(NotServing, match=MISSING) as refused:
                await client.generate([1, 2], max_tokens=4)
            assert refused.value.retry_after_s
            assert not patient.done()

            # When the node is back everything goes on by itself.
            await alpha.start()
            await cluster.whole(240)
            assert (await asyncio.wait_for(patient, 240)).token_ids == right[LONG]
            done = await client.generate(SHORT.prompt, **SHORT.options(30.0))
            assert done.token_ids == right[SHORT]
            assert (await http.post("/v1/completions", json=body)).status_code == 200
        await cluster.idle(240)


async def test_who_left_is_in_no_table_and_who_returns_is_somebody_else(tmp_path: Path) -> None:
    plan = Plan(write_tiny_model(tmp_path / "model"), HALVES)

    def tables(picture: Picture) -> set[str]:
        links = [name for link in picture.down_s for name in link]
        return {*picture.nodes, *picture.used_pages, *picture.open_requests, *links}

    async with ChaosCluster(plan, tmp_path) as cluster:
        await cluster.whole(240)
        async with Client(cluster.clients) as client:
            run = await running(client, LONG, 120.0)
            log = cluster.children["router"].log

            def joined() -> int:
                return len(re.findall(r"beta: joined", log.read_text()))

            beta = cluster.children["beta"]
            for how in (signal.SIGKILL, signal.SIGTERM):
                beta.signal(how)
                await beta.ended(60)
                await cluster.until(lambda p: "beta" not in tables(p), "beta is forgotten", 5.0)
                before = joined()
                await beta.start()
                await cluster.whole(240)
                assert joined() == before + 1
            # Killed and back at once: the new process takes the old one's place in every table.
            before = joined()
            await beta.kill()
            await beta.start()
            await cluster.until(lambda _: joined() > before, "the new beta joins", 30)
            await cluster.whole(240)
            await run.task
        await cluster.idle(240)
