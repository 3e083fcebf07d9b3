"""docs/operations.md, rolling upgrade, done for real: every process is stopped and started again
while the cluster serves, one after the other, and no request fails.

Nodes first, by SIGTERM: each layer is on another node meanwhile. Then the router, with its journal.
SDK clients see a pause; OpenAI's client, which has its own way of trying again, does that.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest

import helix_mq
from helix_mq.errors import HelixError
from helix_mq.sdk.options import ClientOptions
from tests.live_processes import LiveProcesses

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

NODES = {"alpha": "0:6", "beta": "0:6"}
TOKENS = 40
WAIT_S = 240
PROMPT = [{"role": "user", "content": "Count."}]


class Processes(LiveProcesses):
    """Each is stopped and started again."""

    async def stop(self, name: str) -> None:
        """As `systemctl stop` does."""
        child = self.children.pop(name)
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_S):
            assert await child.wait() == 0, self.log(name)

    async def all_ready(self) -> set[int]:
        """Waits for it; the incarnations of the nodes."""
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=240) as http,
            asyncio.timeout(WAIT_S),
        ):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    nodes = (await http.get("/v1/helix/cluster")).json()["nodes"]
                    if [n["state"] for n in nodes] == ["ready"] * len(NODES):
                        return {n["incarnation"] for n in nodes}
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def processes(folder: Path, model: Path) -> AsyncIterator[Processes]:
    these = Processes(folder, model, NODES, "heartbeat_s = 0.2\n[measure]\nat_start = false\n")
    try:
        await these.start_all()
        await these.all_ready()
        yield these
    finally:
        await these.kill_all()


@dataclass
class Load:
    """Requests without a break until `ending`; what became of them."""

    ended: Counter[str] = field(default_factory=Counter)
    texts: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    one_more: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def _note(self, kind: str, text: str) -> None:
        self.ended[kind] += 1
        self.texts.add(text)
        async with self.one_more:
            self.one_more.notify_all()

    async def sdk(self, client: helix_mq.Client) -> None:
        while not self.ending.is_set():
            try:
                done = await client.chat(
                    PROMPT, max_tokens=TOKENS, temperature=0.0, ignore_eos=True
                )
                await self._note("sdk", done.text)
            except HelixError as e:
                self.failed.append(f"sdk: {e}")

    async def http(self, client: openai.AsyncOpenAI) -> None:
        while not self.ending.is_set():
            try:
                answer = await client.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": "Count."}],
                    max_tokens=TOKENS,
                    temperature=0,
                    extra_body={"ignore_eos": True},
                )
                await self._note("http", answer.choices[0].message.content or "")
            except openai.OpenAIError as e:
                self.failed.append(f"http: {e}")

    async def another(self) -> None:
        """Until one more request of each kind has ended: the cluster serves at this point."""
        before = self.ended.copy()
        async with asyncio.timeout(WAIT_S), self.one_more:
            await self.one_more.wait_for(
                lambda: all(self.ended[kind] > before[kind] for kind in ("sdk", "http"))
            )


async def test_a_rolling_upgrade_fails_no_request(tiny_folder: Path, tmp_path: Path) -> None:
    load = Load()
    async with (
        processes(tmp_path, tiny_folder) as cluster,
        helix_mq.Client(cluster.clients, options=ClientOptions(keepalive_s=0.5)) as sdk,
        openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="-", max_retries=20) as http,
    ):
        first = await cluster.all_ready()
        async with asyncio.TaskGroup() as streams:
            streams.create_task(load.sdk(sdk))
            streams.create_task(load.http(http))
            try:
                await load.another()
                for name in NODES:
                    await cluster.stop(name)
                    await load.another()
                    await cluster.start(name)
                    await cluster.all_ready()
                last = await cluster.all_ready()
                assert not first & last, "every node is another process"
                await cluster.stop("router")
                await cluster.start("router")
                assert await cluster.all_ready() == last
                await load.another()
            finally:
                load.ending.set()
    assert load.failed == []
    assert len(load.texts) == 1, "and every answer is the same"
    assert min(load.ended.values()) >= 4
