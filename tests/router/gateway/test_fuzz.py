"""Whatever the body: an answer in OpenAI's form, never a 5xx, and nothing left running."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.clock import SystemClock
from router.gateway import build_app
from router.metrics import RouterMetrics
from router.settings import HttpSection
from tests.echo_service import EchoService

NAMES = [
    *("model", "messages", "prompt", "stream", "stream_options", "n", "stop", "seed", "echo"),
    *("temperature", "top_p", "top_k", "min_p", "logit_bias", "logprobs", "top_logprobs"),
    *("max_tokens", "max_completion_tokens", "min_tokens", "repetition_penalty", "suffix"),
    *("presence_penalty", "frequency_penalty", "ignore_eos", "stop_token_ids", "deadline_s"),
    *("priority", "user", "tools", "response_format", "best_of", "metadata", "nonsense"),
]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(st.characters(), max_size=12),
    st.sampled_from(["echo", "user", "text", "", "\ud800", "0", "-1", "NaN"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.sampled_from([*NAMES, "role", "content", "type"]), st.text(max_size=5)),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.one_of(st.sampled_from(["user", "system", "assistant"]), VALUES)},
        optional={"content": st.one_of(st.text(max_size=20), VALUES), "name": VALUES},
    ),
    max_size=3,
)
PROMPTS = st.one_of(
    st.text(max_size=20),
    st.lists(st.text(max_size=5), max_size=3),
    st.lists(st.integers(-2, 300), max_size=6),
    st.lists(st.lists(st.integers(0, 255), max_size=3), max_size=3),
    VALUES,
)
BODIES = st.builds(
    lambda base, more: {**base, **more},
    st.fixed_dictionaries(
        {"model": st.just("echo"), "max_tokens": st.just(3)},
        optional={"messages": MESSAGES, "prompt": PROMPTS},
    ),
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
)


@settings(max_examples=400, deadline=None)
@given(body=BODIES, path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]))
def test_any_json_body(tiny_folder: Path, body: dict[str, Any], path: str) -> None:
    # json.dumps writes NaN and Infinity, as careless clients do.
    asyncio.run(post_and_check(tiny_folder, path, json.dumps(body).encode()))


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=60),
    at=st.integers(0, 80),
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
)
def test_any_bytes_within_a_good_body(tiny_folder: Path, data: bytes, at: int, path: str) -> None:
    good = json.dumps(
        {"model": "echo", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    ).encode()
    asyncio.run(post_and_check(tiny_folder, path, good[:at] + data + good[at + len(data) :]))


async def post_and_check(folder: Path, path: str, body: bytes) -> None:
    service = EchoService(folder)
    app = build_app(service, HttpSection(), RouterMetrics(SystemClock()))
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        headers = {"content-type": "application/json"}
        answer = await http.post(path, content=body, headers=headers)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    elif answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert answer.json()["choices"]
    assert not service.open
