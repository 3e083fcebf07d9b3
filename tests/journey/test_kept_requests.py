"""Requests by their name over HTTP, and what SDK clients get of a router that was restarted: real
nodes and sockets' ends in one process, a real journal."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from helix_mq.client import Client
from helix_mq.errors import DeadlineExceeded, NotServing
from helix_mq.ids import RequestId
from helix_mq.messages import client as wire
from helix_mq.sampling import SamplingParams
from router.clients import ClientSockets
from router.gateway import GatewayServer
from router.gateway.auth import owner_of
from router.service import Broken, Delta, Finished, Generation
from router.settings import HttpSection, JournalSection, PlacementSection, RouterSettings
from tests.cluster import Cluster, cluster, greedy
from tests.held_steps import held_steps
from tests.router.sdk_setup import RawClient

SLICES = {"a": "0:4", "b": "2:6"}
KEY, OTHER = "sk-mine", "sk-other"


@dataclass
class Edges:
    cluster: Cluster
    settings: RouterSettings
    http_settings: HttpSection
    sockets: ClientSockets
    gateway: GatewayServer

    async def restart(self) -> None:
        """The router's edges and its core stop as on SIGTERM; others start on the same journal."""
        self.cluster.app.closing = True
        await self.gateway.stop()
        await self.sockets.close()
        await self.cluster.restart_router(self.settings)
        await self.start()

    async def start(self) -> None:
        app = self.cluster.app
        self.sockets = ClientSockets(
            app, self.cluster.transport, "mem://sdk", app.security, kept=app.kept
        )
        self.gateway = GatewayServer(app, self.http_settings, app.metrics, requests=app.requests)
        await self.sockets.start()
        await self.gateway.start()

    async def get(self, name: str, key: str = KEY) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.gateway.url, timeout=240) as http:
            headers = {"authorization": f"Bearer {key}"}
            return await http.get(f"/v1/helix/requests/{name}", headers=headers)

    async def until(self, name: str, status: str) -> dict[str, Any]:
        async with asyncio.timeout(240):
            while True:
                answer = await self.get(name)
                assert answer.status_code == 200, answer.text
                found: dict[str, Any] = answer.json()
                if found["status"] == status:
                    return found
                await asyncio.sleep(0.01)

    def ai(self) -> openai.AsyncOpenAI:
        url = self.gateway.url + "/v1"
        return openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=240)


@asynccontextmanager
async def edges(folder: Path, path: Path, *, keys: bool = False) -> AsyncIterator[Edges]:
    journal = JournalSection(path=path)
    async with cluster(folder, SLICES, journal=journal) as c:
        settings = RouterSettings(
            model=folder,
            model_name="tiny",
            control="mem://control",
            data="mem://data",
            placement=PlacementSection(nodes=SLICES),
            journal=journal,
        )
        digests = tuple(hashlib.sha256(k.encode()).hexdigest() for k in (KEY, OTHER))
        http = HttpSection(port=0, api_keys=digests if keys else ())
        found = Edges(c, settings, http, None, None)  # type: ignore[arg-type]
        await found.start()
        try:
            yield found
        finally:
            await found.gateway.stop()
            await found.sockets.close()


async def test_a_finished_answer_can_be_fetched(tiny_folder: Path, tmp_path: Path) -> None:
    async with edges(tiny_folder, tmp_path / "j.db") as e, e.ai() as ai:
        answer = await ai.chat.completions.with_raw_response.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=8,
            temperature=0.8,
            seed=4,
            n=2,
            logprobs=True,
            top_logprobs=2,
        )
        name, whole = answer.headers["x-request-id"], answer.parse()
        assert whole.id == f"chatcmpl-{name}"
        for asked in (name, whole.id):
            got = await e.until(asked, "finished")
            assert got["id"] == asked
            assert got["object"] == "helix.request"
            assert got["model"] == "tiny"
            assert got["error"] is None
            assert whole.usage is not None
            assert got["usage"] == {
                "prompt_tokens": whole.usage.prompt_tokens,
                "completion_tokens": whole.usage.completion_tokens,
                "total_tokens": whole.usage.total_tokens,
            }
            for one, choice in zip(got["choices"], whole.choices, strict=True):
                assert one["index"] == choice.index
                assert one["text"] == choice.message.content
                assert one["finish_reason"] == choice.finish_reason
                assert choice.logprobs is not None
                assert choice.logprobs.content is not None
                assert len(one["token_ids"]) == len(choice.logprobs.content)
                kept = one["logprobs"]["content"]
                assert kept == [c.model_dump() for c in choice.logprobs.content]
        response = await e.get(name)
        assert response.headers["cache-control"] == "no-store"


async def test_names_that_are_not_there(tiny_folder: Path, tmp_path: Path) -> None:
    async with edges(tiny_folder, tmp_path / "j.db") as e, e.ai() as ai:
        answer = await ai.completions.with_raw_response.create(
            model="tiny", prompt="x", max_tokens=2
        )
        name = answer.headers["x-request-id"]
        number, _, secret = name.partition(".")
        wrong = [
            number,
            f"{number}.{'A' * len(secret)}",
            f"{int(number, 16) + 1:x}.{secret}",
            f"{'f' * 16}.{secret}",
            f"{number}.{secret}'--",
            "x" * 3000,
            "%00",
        ]
        for one in wrong:
            refused = await e.get(one)
            assert refused.status_code == 404, one
            assert refused.json()["error"]["code"] == "not_found"
        assert (await e.get(name)).status_code == 200


async def test_another_keys_request_is_not_there(tiny_folder: Path, tmp_path: Path) -> None:
    async with edges(tiny_folder, tmp_path / "j.db", keys=True) as e:
        generation = Generation((1, 2, 3), SamplingParams(max_tokens=3), owner=owner_of(KEY))
        stream = e.cluster.app.submit(generation)
        await stream.accepted()
        assert (await e.get(stream.name)).status_code == 200
        assert (await e.get(stream.name, OTHER)).status_code == 404
        assert (await e.get(stream.name, "no key")).status_code == 401
        async for _ in stream:
            pass


async def test_without_a_journal_the_answer_says_so(tiny_folder: Path) -> None:
    async with cluster(tiny_folder, SLICES) as c:
        gateway = GatewayServer(c.app, HttpSection(port=0), c.app.metrics, requests=c.app.requests)
        await gateway.start()
        async with httpx.AsyncClient(base_url=gateway.url, timeout=240) as http:
            refused = await http.get("/v1/helix/requests/1.abcdefgh")
        await gateway.stop()
    assert refused.status_code == 404
    assert "journal.path" in refused.json()["error"]["message"]


async def test_a_failed_request_says_why(tiny_folder: Path, tmp_path: Path) -> None:
    async with edges(tiny_folder, tmp_path / "j.db") as e:
        generation = Generation(
            (1, 2, 3), SamplingParams(max_tokens=480, ignore_eos=True), deadline_s=0.05
        )
        with held_steps(e.cluster):
            stream = e.cluster.app.submit(generation)
            events = [event async for event in stream]
        assert isinstance(events[-1], Broken)
        assert isinstance(events[-1].error, DeadlineExceeded | NotServing)
        got = await e.until(stream.name, "failed")
        assert got["error"]["code"] == events[-1].error.code
        assert got["choices"][0]["error"] == got["error"]
        assert len(got["choices"][0]["token_ids"]) == len(events) - 1


async def test_a_restart_in_the_middle_of_everything(tiny_folder: Path, tmp_path: Path) -> None:
    """SIGTERM and a new start: SDK streams go on without an error, an HTTP request is finished for
    who asks, though its connection is gone."""
    async with edges(tiny_folder, tmp_path / "j.db") as e:
        wanted = await e.cluster.run(
            Generation((9, 8, 7), SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True))
        )
        async with Client("mem://sdk", transport=e.cluster.transport) as sdk, e.ai() as ai:
            stream = sdk.stream(
                [9, 8, 7], temperature=0, max_tokens=300, ignore_eos=True, logprobs=True
            )
            ask = ai.completions.create(
                model="tiny",
                prompt=[9, 8, 7],
                max_tokens=300,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            running = e.cluster.app.core.sessions
            with held_steps(e.cluster) as held:
                held.open()
                tokens = [await anext(stream) for _ in range(5)]
                held.shut()
                asked = asyncio.create_task(ask)
                await e.cluster.until(lambda: len(running()) == 2, "both are under way")
                held.open()
                http = await asked
                name = (await anext(http)).id
                held.shut()
                for _ in range(2):
                    await e.restart()
                    held.open()
                    tokens.append(await anext(stream))
            tokens += [token async for token in stream]
            assert tuple(t.id for t in tokens if t.id is not None) == wanted.token_ids
            assert "".join(t.text for t in tokens) == wanted.text
            assert stream.result().timings.reroutes >= 1
            got = await e.until(name.removeprefix("cmpl-"), "finished")
            assert tuple(got["choices"][0]["token_ids"]) == wanted.token_ids
            with pytest.raises(openai.APIError, match="shutting down"):
                async for _ in http:
                    pass
        await e.cluster.quiet()


def submit(reference: int) -> wire.Submit:
    sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    return wire.Submit(reference, "", None, None, (4, 5, 6), sampling, True, True, (), None)


async def test_an_ended_stream_is_there_after_a_restart(tiny_folder: Path, tmp_path: Path) -> None:
    """Its last messages were lost with the router: the client resumes, or submits again, and gets
    what it lacks without its running twice."""
    async with edges(tiny_folder, tmp_path / "j.db") as e:
        raw = RawClient()
        await raw.connect(e.cluster.transport, "mem://sdk")
        raw.send(submit(71), submit(72), submit(73))
        async with asyncio.timeout(240):
            while sum(isinstance(m, wire.Done) for m in raw.got) < 3:
                raw.news.clear()
                await raw.news.wait()
        names = {m.reference: m.request for m in raw.got if isinstance(m, wire.Accepted)}
        deltas = [m for m in raw.got if isinstance(m, wire.Delta) and m.reference == 71]
        await e.restart()
        again = RawClient()
        await again.connect(e.cluster.transport, "mem://sdk")
        again.send(wire.Resume(71, names[71], 4), submit(72), wire.Resume(73, names[73], 6))
        again.send(wire.Resume(99, names[71].partition(".")[0] + ".nobodys", 0))
        async with asyncio.timeout(240):
            while sum(isinstance(m, wire.Done | wire.Failed) for m in again.got) < 4:
                again.news.clear()
                await again.news.wait()
        resumed = [m for m in again.got if getattr(m, "reference", None) == 71]
        assert resumed[:-1] == deltas[4:]
        assert isinstance(resumed[-1], wire.Done)
        whole = [m for m in again.got if getattr(m, "reference", None) == 72]
        assert isinstance(whole[0], wire.Accepted)
        assert whole[0].request == names[72]
        assert [m.index for m in whole if isinstance(m, wire.Delta)] == list(range(6))
        rest = [m for m in again.got if getattr(m, "reference", None) == 73]
        assert [type(m) for m in rest] == [wire.Done]
        failed = [m for m in again.got if isinstance(m, wire.Failed)]
        assert [(m.reference, m.code) for m in failed] == [(99, "connection_lost")]
        # Nothing ran twice.
        assert not e.cluster.app.core.sessions()


async def test_a_client_that_is_ahead_of_the_journal_waits(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """A disk that lost the last moments: those tokens are computed again, and not sent again."""
    async with edges(tiny_folder, tmp_path / "j.db") as e:
        raw = RawClient()
        await raw.connect(e.cluster.transport, "mem://sdk")
        raw.send(submit(5))
        done = await raw.until_kind(wire.Done)
        accepted = await raw.until_kind(wire.Accepted)
        assert isinstance(accepted, wire.Accepted)
        all_deltas = [m for m in raw.got if isinstance(m, wire.Delta)]
        request = RequestId(int(accepted.request.partition(".")[0], 16))
        reader = e.cluster.app.requests
        assert reader is not None

        def forget(store: Any) -> None:
            store._db.execute("DELETE FROM ends")
            store._db.execute("DELETE FROM tokens WHERE position > 1")

        await reader._journal.read(forget)
        await e.restart()
        again = RawClient()
        await again.connect(e.cluster.transport, "mem://sdk")
        again.send(wire.Resume(5, accepted.request, 4))
        ended = await again.until_kind(wire.Done)
        assert isinstance(ended, wire.Done)
        assert isinstance(done, wire.Done)
        assert ended.output_tokens == done.output_tokens
        assert [m for m in again.got if isinstance(m, wire.Delta)] == all_deltas[4:]
        found = await reader_events(e, request)
        assert isinstance(found, Finished)


async def reader_events(e: Edges, request: RequestId) -> object:
    reader = e.cluster.app.requests
    assert reader is not None
    found = await reader.events(request)
    assert found is not None
    return found[1][-1]


async def test_a_full_disk_refuses_new_requests_and_breaks_none(
    tiny_folder: Path, tmp_path: Path
) -> None:
    async with edges(tiny_folder, tmp_path / "j.db") as e, e.ai() as ai:
        reader = e.cluster.app.requests
        assert reader is not None
        journal = reader._journal

        async def most_pages(count: int) -> None:
            await journal.read(
                lambda store: store._db.execute(f"PRAGMA max_page_count = {count}").fetchall()
            )

        wanted = await e.cluster.run(greedy((3, 2, 1), 400))
        stream = e.cluster.app.submit(greedy((3, 2, 1), 400))
        await stream.accepted()
        # The least that is possible: as many as there are.
        await most_pages(1)
        tokens = [d.token async for d in stream if isinstance(d, Delta)]
        assert tuple(tokens) == wanted.token_ids
        assert e.cluster.app.status().journal is not None
        # The file has room for some more rows in its last pages; then it has not.
        async with asyncio.timeout(240):
            while not journal.statistics().failing:
                with contextlib.suppress(openai.InternalServerError):
                    await ai.completions.create(model="tiny", prompt="x" * 400, max_tokens=1)
        running = e.cluster.app.core.sessions()
        with pytest.raises(openai.InternalServerError) as refused:
            await ai.completions.create(model="tiny", prompt="x", max_tokens=2)
        assert refused.value.status_code == 503
        assert refused.value.code == "journal_unavailable"
        assert "full" in refused.value.message
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert not running, "what was refused is not computed"
        async with httpx.AsyncClient(base_url=e.gateway.url, timeout=240) as http:
            assert "helix_mq_journal_failing 1.0" in (await http.get("/metrics")).text
        await most_pages(100_000)
        await e.cluster.until(lambda: not journal.statistics().failing, "it is written again")
        answer = await ai.completions.create(model="tiny", prompt="x", max_tokens=2)
        assert answer.usage is not None
        got = await e.until(stream.name, "finished")
        assert tuple(got["choices"][0]["token_ids"]) == wanted.token_ids


async def test_another_model_ends_what_was_accepted(tiny_folder: Path, tmp_path: Path) -> None:
    async with edges(tiny_folder, tmp_path / "j.db") as e:
        with held_steps(e.cluster):
            stream = e.cluster.app.submit(
                Generation((1, 2), SamplingParams(max_tokens=500, ignore_eos=True))
            )
            await stream.accepted()
            reader = e.cluster.app.requests
            assert reader is not None
            await reader._journal.read(
                lambda store: store._db.execute(
                    "UPDATE requests SET body = replace(body, ?, 'another')",
                    (e.cluster.app._keeping.model_digest,),  # type: ignore[union-attr]
                )
            )
            await e.restart()
        got = await e.until(stream.name, "failed")
        assert got["error"]["code"] == "not_serving"
        assert "another model" in got["error"]["message"]
        assert not e.cluster.app.core.sessions()
        await e.cluster.quiet()
