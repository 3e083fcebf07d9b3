"""HTTP and SDK before a real cluster: the same request gives the same tokens by either way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from helix_mq.client import Client
from helix_mq.errors import ContextExceeded
from helix_mq.sampling import SamplingParams
from router.clients import ClientSockets
from router.gateway import GatewayServer
from router.service import Generation
from router.settings import AdmissionSection, HttpSection
from tests.cluster import Cluster, cluster, endpoint, greedy
from tests.held_steps import HeldSteps, held_steps

TWO_WAYS = {"a": "0:3", "b": "0:4", "c": "2:6", "d": "4:6"}


@dataclass
class Edges:
    cluster: Cluster
    ai: openai.AsyncOpenAI
    sdk: Client


@asynccontextmanager
async def edges(folder: Path, **options: object) -> AsyncIterator[Edges]:
    async with cluster(folder, TWO_WAYS, **options) as c:  # type: ignore[arg-type]
        sockets = ClientSockets(c.app, c.transport, endpoint(c.transport, "sdk"), c.app.security)
        gateway = GatewayServer(c.app, HttpSection(port=0), c.app.metrics)
        await sockets.start()
        await gateway.start()
        try:
            async with (
                Client(sockets.endpoint, transport=c.transport) as sdk,
                openai.AsyncOpenAI(
                    base_url=gateway.url + "/v1", api_key="x", max_retries=0, timeout=240
                ) as ai,
            ):
                yield Edges(c, ai, sdk)
            await c.quiet()
        finally:
            await gateway.stop()
            await sockets.close()


@pytest.mark.parametrize("zmq", [False, True], ids=["memory", "zmq"])
async def test_every_way_gives_the_same_tokens(tiny_folder: Path, zmq: bool) -> None:
    async with edges(tiny_folder, zmq=zmq) as e:
        encode = e.cluster.app.tokenizer.encode
        prompts = [f"This is prompt {i}. " + "word " * i for i in range(8)]
        wanted = [await e.cluster.run(greedy(tuple(encode(p)), 24)) for p in prompts]
        extra = {"ignore_eos": True}

        async def by_http(prompt: str) -> str:
            stream = await e.ai.completions.create(
                model="tiny",
                prompt=prompt,
                max_tokens=24,
                temperature=0,
                stream=True,
                extra_body=extra,
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        async def by_sdk(prompt: str) -> str:
            got = await e.sdk.generate(prompt, max_tokens=24, temperature=0, ignore_eos=True)
            return got.text

        texts = await asyncio.gather(*map(by_http, prompts), *map(by_sdk, prompts))
        assert texts == [w.text for w in wanted] * 2
        whole = await e.ai.completions.create(
            model="tiny", prompt=prompts, max_tokens=24, temperature=0, extra_body=extra
        )
        assert [c.text for c in whole.choices] == [w.text for w in wanted]


async def test_a_seed_gives_the_same_draws_by_either_way(tiny_folder: Path) -> None:
    async with edges(tiny_folder) as e:
        ids = tuple(e.cluster.app.tokenizer.encode("draw"))
        sampling = SamplingParams(temperature=0.9, seed=77, max_tokens=20)
        wanted = await e.cluster.run(Generation(ids, sampling))
        http = await e.ai.completions.create(
            model="tiny", prompt="draw", max_tokens=20, temperature=0.9, seed=77, n=3
        )
        sdk = await e.sdk.generate("draw", max_tokens=20, temperature=0.9, seed=77)
        assert http.choices[0].text == wanted.text == sdk.text
        assert sdk.token_ids == wanted.token_ids
        assert len({c.text for c in http.choices}) == 3


async def test_leaving_frees_every_page(tiny_folder: Path) -> None:
    async with edges(tiny_folder) as e:

        async def leave_http(number: int) -> None:
            stream = await e.ai.completions.create(
                model="tiny",
                prompt=f"http {number}",
                max_tokens=400,
                stream=True,
                n=2,
                extra_body={"ignore_eos": True},
            )
            for _ in range(3):
                await anext(stream)
            await stream.close()

        async def leave_sdk(number: int) -> None:
            async with e.sdk.stream(f"sdk {number}", max_tokens=400, ignore_eos=True) as stream:
                for _ in range(3):
                    await anext(stream)

        await asyncio.gather(*map(leave_http, range(8)), *map(leave_sdk, range(8)))
        await e.cluster.until(lambda: not e.cluster.app.core.sessions(), "no request is left")
        await e.cluster.quiet()


async def test_prompts_that_do_not_fit_are_refused_by_either_way(tiny_folder: Path) -> None:
    async with edges(tiny_folder) as e:
        with pytest.raises(openai.BadRequestError) as refused:
            await e.ai.completions.create(model="tiny", prompt="x" * 600)
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="empty"):
            await e.ai.completions.create(model="tiny", prompt="")
        for prompt in ("x" * 600, "x" * 500):
            with pytest.raises(ContextExceeded):
                await e.sdk.generate(prompt, max_tokens=100)
        assert (await e.sdk.generate("x" * 500, ignore_eos=True)).usage.output_tokens == 12


async def test_logprobs_travel_with_greedy_tokens(tiny_folder: Path) -> None:
    async with edges(tiny_folder) as e:
        chat = await e.ai.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=6,
            temperature=0,
            logprobs=True,
            top_logprobs=3,
        )
        logprobs = chat.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert chat.usage is not None
        assert len(logprobs.content) == chat.usage.completion_tokens
        for item in logprobs.content:
            best = item.top_logprobs[0]
            assert (best.bytes, best.logprob) == (item.bytes, item.logprob)
            values = [t.logprob for t in item.top_logprobs]
            assert values == sorted(values, reverse=True)
            assert all(v <= 0 for v in values)
        sdk = await e.sdk.chat(
            [{"role": "user", "content": "hello"}],
            max_tokens=6,
            temperature=0,
            logprobs=True,
            top_logprobs=3,
        )
        assert sdk.logprobs is not None
        got = [round(lp.logprob, 4) for lp in sdk.logprobs]
        assert got == [round(item.logprob, 4) for item in logprobs.content]


async def test_a_burst_ends_in_answers_or_refusals_that_say_when_to_come_back(
    tiny_folder: Path,
) -> None:
    admission = AdmissionSection(max_waiting=20)
    async with edges(tiny_folder, admission=admission, memory_bytes=1 << 20) as e:

        async def one(number: int, held: HeldSteps) -> str:
            try:
                answer = await e.ai.completions.create(
                    model="tiny", prompt=f"{number}", max_tokens=8, temperature=0
                )
            except openai.InternalServerError as refused:
                # Without keys nobody has a share of his own: it is the cluster that is full.
                assert refused.status_code == 503, refused
                assert int(refused.response.headers["retry-after"]) >= 1
                held.open()
                return "503"
            return answer.choices[0].finish_reason

        members = e.cluster.app.core.cluster.membership
        await e.cluster.until(lambda: len(members.serving()) == len(TWO_WAYS), "all are ready")
        # However fast they are, they do not take them as fast as they come.
        with held_steps(e.cluster) as held:
            ends = await asyncio.gather(*(one(i, held) for i in range(300)))
        assert set(ends) <= {"503", "length", "stop"}
        assert {"length", "stop"} & set(ends)
        assert "503" in ends
