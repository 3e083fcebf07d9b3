"""kill -9 of the router, twenty times: every stream goes on, every token once, nothing is lost.

Real processes: the router with a journal, and nodes that keep their slices loaded. Moments are
chosen by a seed: while tokens flow, before the nodes are back, while requests come in.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

import helix_mq
from helix_mq.sdk.options import ClientOptions, RequestOptions
from helix_mq.sdk.results import Token
from tests.live_processes import LiveProcesses

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

SLICES = {"a": "0:4", "b": "2:6"}
KILLS = 20
OPTIONS = ClientOptions(connect_timeout_s=30, reconnect_timeout_s=60, keepalive_s=0.5)


class Live(LiveProcesses):
    """The router is killed and started again."""

    async def kill_router(self) -> None:
        router = self.children.pop("router")
        router.send_signal(signal.SIGKILL)
        assert await router.wait() == -signal.SIGKILL, self.log("router")

    def return_tokens(self, way: str) -> None:
        """Routers that are started from now on let tokens return this way."""
        toml = self.folder / "router.toml"
        whole = toml.read_text().partition("\n")
        rest = whole[2] if whole[0].startswith("token_return") else "".join(whole)
        toml.write_text(f'token_return = "{way}"\n{rest}')

    async def answers(self, path: str) -> httpx.Response:
        """Waits until the router answers there with 200."""
        async with httpx.AsyncClient(base_url=self.url, timeout=240) as http, asyncio.timeout(240):
            while True:
                for name, child in self.children.items():
                    assert child.returncode is None, self.log(name)
                with contextlib.suppress(httpx.TransportError):
                    answer = await http.get(path)
                    if answer.status_code == 200:
                        return answer
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def live(folder: Path, model: Path) -> AsyncIterator[Live]:
    cluster = Live(folder, model, SLICES, "heartbeat_s = 0.1\n")
    try:
        await cluster.start_all()
        await cluster.answers("/ready")
        yield cluster
    finally:
        await cluster.kill_all()


@dataclass
class Counter:
    """Tokens seen by all clients, and who waits for more."""

    seen: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self) -> None:
        self.seen += 1
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(240):
            while not condition():
                self.news.clear()
                await self.news.wait()


def requests() -> list[tuple[str, RequestOptions]]:
    """Greedy and seeded ones, with penalties, stop strings and log probabilities among them."""
    found: list[tuple[str, RequestOptions]] = []
    for i in range(8):
        options = RequestOptions(max_tokens=30 + 30 * i, ignore_eos=True)
        options["temperature"] = 0.0 if i % 2 else 0.9
        if not i % 2:
            options["seed"] = 100 + i
        if i == 3:
            options["repetition_penalty"] = 1.3
        if i == 4:
            options["logprobs"] = True
            options["top_logprobs"] = 3
        if i == 6:
            options["stop"] = ["\x00never", "zq"]
        found.append((f"request number {i}: " + "words " * i, options))
    return found


async def read(client: helix_mq.Client, number: int, counter: Counter) -> list[Token]:
    prompt, options = requests()[number]
    tokens: list[Token] = []
    async with client.stream(prompt, **options) as stream:
        async for token in stream:
            assert token.index == len(tokens)
            tokens.append(token)
            counter.count()
    whole = stream.result()
    assert [t.id for t in tokens if t.id is not None] == list(whole.token_ids)
    return tokens


def plain(tokens: list[Token]) -> list[tuple[int | None, str]]:
    return [(t.id, t.text) for t in tokens]


async def test_twenty_kills_lose_and_repeat_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    rng, counter = random.Random(20), Counter()
    killing = True
    async with (
        live(tmp_path, tiny_folder) as cluster,
        helix_mq.Client(cluster.clients, options=OPTIONS) as client,
    ):
        numbers = range(len(requests()))
        undisturbed = await asyncio.gather(*(read(client, n, counter) for n in numbers))
        done = 0

        async def keep_reading(order: random.Random) -> None:
            nonlocal done
            while killing:
                number = order.choice(numbers)
                tokens = await read(client, number, counter)
                assert plain(tokens) == plain(undisturbed[number]), f"request {number}"
                wanted = [t.logprob is not None for t in undisturbed[number]]
                assert [t.logprob is not None for t in tokens] == wanted
                done += 1

        async def one_by_http(begun: asyncio.Event) -> tuple[str, str]:
            """Streams a completion until the router dies; its id, and what had come of its text."""
            got, name = "", ""
            body = {
                "model": "tiny",
                "prompt": requests()[7][0],
                "max_tokens": 240,
                "temperature": 0,
                "stream": True,
                "ignore_eos": True,
            }
            async with httpx.AsyncClient(base_url=cluster.url, timeout=240) as http:
                with contextlib.suppress(httpx.TransportError):
                    async with http.stream("POST", "/v1/completions", json=body) as answer:
                        begun.set()
                        assert answer.status_code == 200, await answer.aread()
                        name = answer.headers["x-request-id"]
                        async for line in answer.aiter_lines():
                            if line.startswith("data: {"):
                                chunk = httpx.Response(200, text=line[6:]).json()
                                got += chunk["choices"][0]["text"]
                                counter.count()
            return name, got

        readers = [asyncio.create_task(keep_reading(random.Random(i))) for i in range(6)]
        by_http: list[tuple[str, str]] = []
        try:
            for kill in range(KILLS):
                http = None
                if kill % 4 == 0:
                    await cluster.answers("/ready")
                    begun = asyncio.Event()
                    http = asyncio.create_task(one_by_http(begun))
                    async with asyncio.timeout(240):
                        await begun.wait()
                if kill % 5 == 3:
                    # Before the nodes are back, whatever it has restored by then.
                    await cluster.answers("/health")
                else:
                    wanted = counter.seen + rng.randrange(5, 60)
                    await counter.until(lambda wanted=wanted: counter.seen >= wanted)
                for reader in readers:
                    assert not reader.done(), reader.exception()
                await cluster.kill_router()
                cluster.return_tokens("router" if kill % 2 else "direct")
                if http is not None:
                    by_http.append(await http)
                await cluster.start("router")
            killing = False
            async with asyncio.timeout(240):
                await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        assert done >= len(readers)
        text = "".join(t.text for t in undisturbed[7])
        assert len(by_http) == KILLS / 4
        for name, got in by_http:
            kept = (await until_finished(cluster, name))["choices"][0]
            assert kept["text"] == text
            assert text.startswith(got)
            assert kept["token_ids"] == [t.id for t in undisturbed[7]]
            assert kept["finish_reason"] == "length"
        await all_pages_back(cluster)
        for name in SLICES:
            # Whatever the router asked of it since, the slice was there.
            assert (tmp_path / f"{name}.log").read_text().count("warming up") == 1


async def until_finished(cluster: Live, name: str) -> dict[str, object]:
    async with asyncio.timeout(240):
        while True:
            kept = (await cluster.answers(f"/v1/helix/requests/{name}")).json()
            assert kept["error"] is None
            if kept["status"] == "finished":
                return kept
            await asyncio.sleep(0.05)


async def all_pages_back(cluster: Live) -> None:
    async with asyncio.timeout(240):
        while True:
            text = (await cluster.answers("/metrics")).text
            used = [
                float(line.rsplit(" ", 1)[1])
                for line in text.splitlines()
                if line.startswith("helix_mq_node_kv_pages{") and 'kind="used"' in line
            ]
            if len(used) == len(SLICES) and not any(used):
                return
            await asyncio.sleep(0.05)
