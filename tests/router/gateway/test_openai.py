"""The real openai client against the gateway: everything it can ask for."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from helix_mq.errors import KvExhausted, NotServing, QueueFull
from tests.echo_service import EchoService

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


async def test_models(ai: openai.AsyncOpenAI) -> None:
    assert [m.id async for m in ai.models.list()] == ["echo"]
    assert (await ai.models.retrieve("echo")).owned_by == "helix_mq"
    with pytest.raises(openai.NotFoundError) as refused:
        await ai.models.retrieve("no/such")
    assert refused.value.code == "model_not_found"


async def test_chat(ai: openai.AsyncOpenAI, service: EchoService) -> None:
    answer = await ai.chat.completions.create(
        model="echo", messages=HI, max_completion_tokens=8, temperature=0
    )
    asked = service.submitted[0]
    ids = service.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert asked.prompt_ids == tuple(ids)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == service.text_of(asked)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 8)
    assert answer.usage.total_tokens == len(ids) + 8
    assert answer.id.startswith("chatcmpl-")


async def test_chat_streamed_with_usage(ai: openai.AsyncOpenAI, service: EchoService) -> None:
    stream = await ai.chat.completions.create(
        model="echo",
        messages=HI,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == service.text_of(service.submitted[0])
    assert chunks[-2].choices[0].finish_reason == "length"
    assert all(c.usage is None for c in chunks[:-1])
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


async def test_a_stream_without_usage_has_none(ai: openai.AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(model="echo", messages=HI, max_tokens=2, stream=True)
    assert ["usage" in chunk.model_fields_set async for chunk in stream] == [False] * 4


async def test_choices_have_seeds_of_their_own(
    ai: openai.AsyncOpenAI, service: EchoService
) -> None:
    answer = await ai.chat.completions.create(model="echo", messages=HI, max_tokens=6, n=4, seed=11)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    texts = [c.message.content for c in answer.choices]
    assert texts == [service.text_of(g) for g in service.submitted]
    assert len({g.sampling.seed for g in service.submitted}) == 4
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == len(service.submitted[0].prompt_ids)
    alone = await ai.chat.completions.create(model="echo", messages=HI, max_tokens=6, seed=11)
    assert alone.choices[0].message.content == texts[0]


async def test_choices_streamed(ai: openai.AsyncOpenAI, service: EchoService) -> None:
    stream = await ai.chat.completions.create(
        model="echo", messages=HI, max_tokens=9, n=3, seed=1, stream=True
    )
    texts, reasons = ["", "", ""], {}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [service.text_of(g) for g in service.submitted]
    assert reasons == {0: "length", 1: "length", 2: "length"}


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63 - 1])
async def test_any_seed_of_64_bits(ai: openai.AsyncOpenAI, service: EchoService, seed: int) -> None:
    await ai.chat.completions.create(model="echo", messages=HI, max_tokens=1, seed=seed)
    assert service.submitted[0].sampling.seed == seed % 2**63


@pytest.mark.parametrize("streamed", [False, True])
async def test_stop_strings(ai: openai.AsyncOpenAI, service: EchoService, streamed: bool) -> None:
    whole = await ai.completions.create(model="echo", prompt="abc", max_tokens=20, temperature=0)
    text = whole.choices[0].text
    stop = text[4:7]
    if streamed:
        stream = await ai.completions.create(
            model="echo", prompt="abc", max_tokens=20, temperature=0, stop=stop, stream=True
        )
        chunks = [c async for c in stream]
        got = "".join(c.choices[0].text for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        answer = await ai.completions.create(
            model="echo", prompt="abc", max_tokens=20, temperature=0, stop=["\x00", stop]
        )
        got, reason = answer.choices[0].text, answer.choices[0].finish_reason
    assert got == text[: text.index(stop)]
    assert reason == "stop"


async def test_chat_logprobs(ai: openai.AsyncOpenAI, service: EchoService) -> None:
    answer = await ai.chat.completions.create(
        model="echo", messages=HI, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    text = "".join(item.token for item in logprobs.content)
    assert text == answer.choices[0].message.content
    first = logprobs.content[0]
    assert first.logprob == -0.25
    assert bytes(first.bytes or []).decode() == first.token
    assert [t.logprob for t in first.top_logprobs] == [0.0, -0.5]


async def test_chat_logprobs_streamed(ai: openai.AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(
        model="echo", messages=HI, max_tokens=5, logprobs=True, stream=True
    )
    count = 0
    async for chunk in stream:
        logprobs = chunk.choices[0].logprobs
        count += len(logprobs.content or []) if logprobs is not None else 0
    assert count == 5


async def test_completion_logprobs(ai: openai.AsyncOpenAI) -> None:
    answer = await ai.completions.create(model="echo", prompt="abc", max_tokens=4, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.token_logprobs == [-0.25] * 4
    assert logprobs.text_offset == [0, 1, 2, 3]
    assert logprobs.top_logprobs is not None
    assert [len(top) for top in logprobs.top_logprobs] == [2] * 4
    none_asked = await ai.completions.create(model="echo", prompt="a", max_tokens=2, logprobs=0)
    assert none_asked.choices[0].logprobs is not None
    assert none_asked.choices[0].logprobs.token_logprobs == [-0.25] * 2


async def test_a_piece_of_a_character_has_its_bytes(
    ai: openai.AsyncOpenAI, service: EchoService
) -> None:
    """Some tokens of the byte tokenizer are half a letter: their text alone is U+FFFD."""
    half = next(t for t in range(256) if service.tokenizer.token_text(t) == "\ufffd")
    from tests import echo_service

    letters, echo_service.LETTERS = echo_service.LETTERS, range(half, half + 1)
    try:
        answer = await ai.chat.completions.create(
            model="echo", messages=HI, max_tokens=1, logprobs=True
        )
    finally:
        echo_service.LETTERS = letters
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].token == "\ufffd"
    assert logprobs.content[0].bytes == list(service.tokenizer.token_bytes(half))
    assert len(logprobs.content[0].bytes) == 1


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([5, 6, 7], [(5, 6, 7)]),
        ([[5], [6, 7]], [(5,), (6, 7)]),
    ],
)
async def test_every_form_of_prompt(
    ai: openai.AsyncOpenAI,
    service: EchoService,
    prompt: object,
    ids: list[str | tuple[int, ...]],
) -> None:
    answer = await ai.completions.create(
        model="echo",
        prompt=prompt,  # type: ignore[arg-type]
        max_tokens=3,
        n=2,
        echo=True,
        temperature=0,
    )
    wanted = [tuple(service.tokenizer.encode(p)) if isinstance(p, str) else p for p in ids]
    assert [g.prompt_ids for g in service.submitted] == [w for w in wanted for _ in range(2)]
    texts = [c.text for c in answer.choices]
    assert texts == [
        service.tokenizer.decode(g.prompt_ids) + service.text_of(g) for g in service.submitted
    ]
    assert [c.index for c in answer.choices] == list(range(2 * len(ids)))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(w) for w in wanted)


async def test_prompts_echoed_and_streamed(ai: openai.AsyncOpenAI, service: EchoService) -> None:
    stream = await ai.completions.create(
        model="echo", prompt=["ab", "c"], max_tokens=3, echo=True, stream=True
    )
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [
        "ab" + service.text_of(service.submitted[0]),
        "c" + service.text_of(service.submitted[1]),
    ]


async def test_completions_default_to_16_tokens_and_chats_to_what_fits(
    ai: openai.AsyncOpenAI, service: EchoService
) -> None:
    await ai.completions.create(model="echo", prompt="a")
    await ai.chat.completions.create(model="echo", messages=HI)
    assert [g.sampling.max_tokens for g in service.submitted] == [16, 40]


async def test_parts_of_text_are_joined_and_developer_is_system(
    ai: openai.AsyncOpenAI, service: EchoService
) -> None:
    await ai.chat.completions.create(
        model="echo",
        messages=[
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
            },
        ],
        max_tokens=1,
    )
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo"},
    ]
    assert service.submitted[0].prompt_ids == tuple(service.tokenizer.apply_chat_template(turns))


async def test_an_answer_can_be_sent_back_as_it_came(ai: openai.AsyncOpenAI) -> None:
    first = await ai.chat.completions.create(model="echo", messages=HI, max_tokens=2)
    back = first.choices[0].message.model_dump()
    await ai.chat.completions.create(
        model="echo",
        messages=[*HI, back, *HI],
        max_tokens=1,
    )


async def test_every_sampling_parameter_arrives(
    ai: openai.AsyncOpenAI, service: EchoService
) -> None:
    await ai.chat.completions.create(
        model="echo",
        messages=HI,
        max_tokens=5,
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1.5,
        logit_bias={"7": 5, "3": -100},  # type: ignore[dict-item]
        user="somebody",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        extra_body={
            "top_k": 9,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [4],
            "deadline_s": 30,
            "priority": 1,
        },
    )
    asked = service.submitted[0]
    s = asked.sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p) == (0.5, 0.25, 9, 0.125)
    assert (s.presence_penalty, s.frequency_penalty, s.repetition_penalty) == (1.0, -1.5, 1.5)
    assert s.logit_bias == ((3, -100.0), (7, 5.0))
    assert (s.min_tokens, s.ignore_eos, s.stop_token_ids) == (2, True, (4,))
    assert (asked.deadline_s, asked.priority) == (30.0, 1)


# -- errors as the client sees them --------------------------------------------


async def test_an_unknown_model_is_not_found(ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9") as refused:
        await ai.chat.completions.create(model="gpt-9", messages=HI)
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"


async def test_a_prompt_longer_than_the_context(ai: openai.AsyncOpenAI) -> None:
    for max_tokens in (1, openai.omit):
        with pytest.raises(openai.BadRequestError) as refused:
            await ai.chat.completions.create(
                model="echo",
                messages=[{"role": "user", "content": "x" * 5000}],
                max_tokens=max_tokens,
            )
        assert refused.value.code == "context_length_exceeded"


async def test_a_full_queue_says_when_to_come_back(
    ai: openai.AsyncOpenAI, service: EchoService
) -> None:
    service.refusal = QueueFull("full", retry_after_s=2.3)
    with pytest.raises(openai.RateLimitError) as refused:
        await ai.chat.completions.create(model="echo", messages=HI)
    assert refused.value.response.headers["retry-after"] == "3"
    assert refused.value.code == "queue_full"
    service.refusal = NotServing("layers 3-5 are on no live node")
    with pytest.raises(openai.InternalServerError, match="layers 3-5") as down:
        await ai.chat.completions.create(model="echo", messages=HI)
    assert down.value.status_code == 503
    assert int(down.value.response.headers["retry-after"]) >= 1


async def test_one_refused_choice_cancels_the_others(
    ai: openai.AsyncOpenAI, service: EchoService
) -> None:
    service.max_open = 2
    service.hold_at = 0
    with pytest.raises(openai.RateLimitError):
        await ai.chat.completions.create(model="echo", messages=HI, n=3)
    assert not service.open
    assert len(service.cancelled) == 2


@pytest.mark.parametrize("n", [1, 3])
async def test_an_error_in_mid_stream_is_the_last_event(
    ai: openai.AsyncOpenAI, service: EchoService, n: int
) -> None:
    service.break_at = (3, KvExhausted("no page is free"))
    stream = await ai.chat.completions.create(
        model="echo", messages=HI, max_tokens=9, n=n, stream=True
    )
    got = 0
    with pytest.raises(openai.APIError, match="no page is free"):  # noqa: PT012
        async for chunk in stream:
            got += sum(bool(c.delta.content) for c in chunk.choices)
    assert got >= 1
    assert not service.open


async def test_an_error_before_the_first_token_has_its_own_status(
    ai: openai.AsyncOpenAI, service: EchoService
) -> None:
    service.break_at = (0, KvExhausted("no page is free"))
    for streamed in (False, True):
        with pytest.raises(openai.InternalServerError, match="no page is free") as refused:
            await ai.chat.completions.create(model="echo", messages=HI, stream=streamed)
        assert refused.value.status_code == 503


async def test_a_thousand_at_once_end_in_answers_or_429(
    ai: openai.AsyncOpenAI, service: EchoService
) -> None:
    service.max_open = 40
    limit = asyncio.Semaphore(200)

    async def one() -> int:
        async with limit:
            try:
                answer = await ai.completions.create(model="echo", prompt="a", max_tokens=5)
            except openai.RateLimitError as e:
                assert e.response.headers["retry-after"] == "3"
                return 0
            assert answer.usage is not None
            return answer.usage.completion_tokens

    got = await asyncio.gather(*(one() for _ in range(1000)))
    assert set(got) <= {0, 5}
    assert 5 in got
