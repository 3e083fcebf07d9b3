"""The SDK and the router's client sockets together, in memory and over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from helix_mq.client import Client
from helix_mq.errors import (
    ConnectionLost,
    ContextExceeded,
    DeadlineExceeded,
    InvalidRequest,
    KvExhausted,
    LocalError,
    QueueFull,
    UnknownModel,
)
from helix_mq.frames import decode, encode
from helix_mq.messages import client as wire
from helix_mq.sampling import SamplingParams
from helix_mq.sdk.options import ClientOptions
from helix_mq.transport import (
    Delivery,
    MemoryTransport,
)
from tests.router.sdk_setup import Setup, greedy


async def test_a_stream_gives_tokens_then_the_whole(setup: Setup) -> None:
    async with setup.client() as client:
        stream = client.stream("hello", max_tokens=9, temperature=0)
        tokens = [token async for token in stream]
    want = setup.service.text_of(greedy(setup.service, "hello", 9))
    assert "".join(t.text for t in tokens) == want
    assert [t.index for t in tokens] == list(range(9))
    result = stream.result()
    assert result.text == want
    assert result.token_ids == tuple(t.id for t in tokens)
    assert (result.usage.prompt_tokens, result.usage.output_tokens) == (5, 9)
    assert result.finish_reason == "length"
    assert result.model == "echo"
    assert 0 < result.timings.ttft_s <= result.timings.total_s
    assert result.timings.tokens_per_s > 0
    assert result.logprobs is None


async def test_generate_chat_and_models(setup: Setup) -> None:
    async with setup.client() as client:
        whole = await client.generate([1, 2, 3], max_tokens=4, temperature=0)
        chat = await client.chat([{"role": "user", "content": "hi"}], max_tokens=3, seed=5)
        models = await client.models()
    assert setup.service.submitted[0].prompt_ids == (1, 2, 3)
    assert whole.text == setup.service.text_of(setup.service.submitted[0])
    ids = setup.service.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert setup.service.submitted[1].prompt_ids == tuple(ids)
    assert setup.service.submitted[1].sampling.seed == 5
    assert chat.usage.output_tokens == 3
    assert models.names == ("echo",)
    assert models.serving
    assert setup.service.statuses == 0


async def test_every_option_reaches_the_service(setup: Setup) -> None:
    async with setup.client() as client:
        await client.generate(
            "x",
            model="echo",
            max_tokens=3,
            min_tokens=2,
            temperature=1,
            top_p=0.5,
            top_k=7,
            min_p=0.1,
            repetition_penalty=1.5,
            presence_penalty=-1,
            frequency_penalty=2,
            logit_bias={9: 1, 3: -2.5},
            seed=-1,
            stop=["zzz", "yyy"],
            stop_token_ids=[8],
            ignore_eos=True,
            deadline_s=30,
            priority=1,
        )
    got = setup.service.submitted[0]
    assert got.sampling == SamplingParams(
        temperature=1.0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        logit_bias=((3, -2.5), (9, 1)),
        seed=(1 << 63) - 1,
        max_tokens=3,
        min_tokens=2,
        stop_token_ids=(8,),
        ignore_eos=True,
    )
    assert (got.stop, got.deadline_s, got.priority) == (("zzz", "yyy"), 30.0, 1)


async def test_the_router_decides_what_was_left_open(setup: Setup) -> None:
    async with setup.client() as client:
        whole = await client.generate("x")
    sampling = setup.service.submitted[0].sampling
    assert sampling.max_tokens == 40 == whole.usage.output_tokens
    assert sampling.seed > 1000


async def test_logprobs_come_with_their_tokens(setup: Setup) -> None:
    async with setup.client() as client:
        whole = await client.generate("x", max_tokens=3, logprobs=True, top_logprobs=2)
    assert whole.logprobs is not None
    assert [lp.id for lp in whole.logprobs] == list(whole.token_ids)
    assert whole.logprobs[0].text == setup.service.tokenizer.token_text(whole.token_ids[0])
    assert [t.logprob for t in whole.logprobs[0].top] == [0.0, -0.5]


async def test_a_stop_string_ends_the_text(setup: Setup) -> None:
    text = setup.service.text_of(greedy(setup.service, "abc", 20))
    stop = text[5:8]
    async with setup.client() as client:
        whole = await client.generate("abc", max_tokens=20, temperature=0, stop=stop)
    assert whole.text == text[: text.index(stop)]
    assert whole.finish_reason == "stop"


async def test_many_streams_at_once_do_not_mix(setup: Setup) -> None:
    async with setup.client() as client:
        prompts = [f"prompt {i}" for i in range(50)]
        whole = await asyncio.gather(
            *(client.generate(p, max_tokens=20, temperature=0) for p in prompts)
        )
    for prompt, got in zip(prompts, whole, strict=True):
        assert got.text == setup.service.text_of(greedy(setup.service, prompt, 20))


@pytest.mark.parametrize("way", ["break", "aclose", "cancel", "with", "client"])
async def test_leaving_a_stream_cancels_it(setup: Setup, way: str) -> None:
    setup.service.hold_at = 3
    async with setup.client() as client:
        stream = client.stream("hold", max_tokens=30)
        if way == "with":
            async with stream:
                await anext(stream)
        else:
            await anext(stream)
        if way == "aclose":
            await stream.aclose()
        elif way == "cancel":
            client.cancel(stream)
            async for _ in stream:
                pass
            assert stream.result().finish_reason == "cancelled"
        elif way == "break":
            del stream
        if way != "client":
            await setup.service.until_open(0)
    await setup.service.until_open(0)
    assert len(setup.service.cancelled) == 1


async def test_errors_arrive_as_they_were_raised(setup: Setup) -> None:
    async with setup.client() as client:
        with pytest.raises(UnknownModel, match="'other'"):
            await client.generate("x", model="other")
        with pytest.raises(ContextExceeded, match="do not fit"):
            await client.generate("x", max_tokens=5000)
        setup.service.refusal = QueueFull("full", retry_after_s=7.5)
        with pytest.raises(QueueFull, match="full") as refused:
            await client.generate("x")
        assert refused.value.retry_after_s == 7.5
        setup.service.refusal = None
        setup.service.break_at = (4, KvExhausted("no page"))
        stream = client.stream("x", max_tokens=10)
        for _ in range(4):
            await anext(stream)
        with pytest.raises(KvExhausted, match="no page"):
            await anext(stream)
        with pytest.raises(KvExhausted):
            stream.result()


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_k": -5}, "top_k"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"deadline_s": float("inf")}, "deadline_s"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"priority": 9}, "priority"),
        ({"temprature": 1.0}, "temprature"),
        ({"top_logprobs": 3}, "top_logprobs"),
    ],
)
async def test_wrong_arguments_raise_where_they_are_made(
    options: dict[str, object], param: str
) -> None:
    client = Client("mem://nowhere", transport=MemoryTransport())
    with pytest.raises(InvalidRequest) as refused:
        client.stream("x", **options)  # type: ignore[arg-type]
    assert refused.value.param == param


async def test_wrong_prompts_raise_where_they_are_made() -> None:
    client = Client("mem://nowhere", transport=MemoryTransport())
    wrong: list[object] = [[], ["x"], [-1], [1 << 40], 7, b"x"]
    for prompt in wrong:
        with pytest.raises(InvalidRequest) as refused:
            client.stream(prompt)  # type: ignore[arg-type]
        assert refused.value.param == "prompt"
    for messages in ([], ["x"], [{"role": "user"}], [{"role": "", "content": "x"}], "hi"):
        with pytest.raises(InvalidRequest):
            client.stream_chat(messages)  # type: ignore[arg-type]


async def test_a_client_that_is_not_connected_says_so() -> None:
    client = Client("mem://nowhere", transport=MemoryTransport())
    with pytest.raises(LocalError, match="not connected"):
        await client.generate("x")


async def test_no_router_says_what_to_check() -> None:
    options = ClientOptions(connect_timeout_s=0.2)
    with pytest.raises(ConnectionLost, match=r"no router at tcp://127\.0\.0\.1:9.*check"):
        async with Client("tcp://127.0.0.1:9", options=options):
            pass


async def test_a_listener_that_does_not_answer_says_what_to_check() -> None:
    transport = MemoryTransport()
    await transport.listen("mem://mute", lambda delivery: None)
    client = Client("mem://mute", transport=transport, options=ClientOptions(0.2))
    with pytest.raises(ConnectionLost, match=r"has not answered.*`clients` address"):
        await client.connect()
    await client.close()
    await transport.close()


async def test_a_router_that_falls_silent_ends_the_streams() -> None:
    transport = MemoryTransport()
    answers: list[Callable[[], None]] = []

    def answer_models_only(delivery: Delivery) -> None:
        if isinstance(decode(delivery.parts).header, wire.Models):
            listener.send(delivery.peer, encode(wire.Models(("m",), True)))
            answers.append(lambda: None)

    listener = await transport.listen("mem://quiet", answer_models_only)
    options = ClientOptions(keepalive_s=0.02, router_silent_s=0.1)
    async with Client("mem://quiet", transport=transport, options=options) as client:
        with pytest.raises(ConnectionLost, match="has not answered"):
            await client.generate("x")
    assert answers
    await transport.close()


async def test_a_deadline_holds_even_if_the_router_does_not_answer(setup: Setup) -> None:
    setup.service.hold_at = 0
    async with setup.client() as client:
        with pytest.raises(DeadlineExceeded, match="has passed"):
            await client.generate("x", deadline_s=0.05)
    await setup.service.until_open(0)
