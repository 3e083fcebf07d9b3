"""Bad input of every kind: a clear 4xx in OpenAI's form, never a 5xx, nothing else disturbed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import httpx
import pytest

from router.gateway import GatewayServer
from router.settings import HttpSection
from tests.echo_service import EchoService

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of a response, after checking that it has OpenAI's form."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert answer.headers["content-type"].startswith("application/json")
    error: dict[str, Any] = body["error"]
    return error


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": MESSAGES, "max_tokens": 2, **changes}


def text(**changes: Any) -> dict[str, Any]:
    return {"model": "echo", "prompt": "x", "max_tokens": 2, **changes}


FIELDS: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, chat(temperature="hot"), "temperature"),
    (CHAT, chat(temperature=-1), "temperature"),
    (CHAT, chat(temperature=1e9), "temperature"),
    (CHAT, chat(temperature=True), "temperature"),
    (CHAT, chat(temperature=10**400), "temperature"),
    (CHAT, chat(top_p=0), "top_p"),
    (CHAT, chat(top_p=1.5), "top_p"),
    (CHAT, chat(top_k=-2), "top_k"),
    (CHAT, chat(top_k=1.5), "top_k"),
    (CHAT, chat(min_p=2), "min_p"),
    (CHAT, chat(presence_penalty=3), "presence_penalty"),
    (CHAT, chat(frequency_penalty=-3), "frequency_penalty"),
    (CHAT, chat(repetition_penalty=0), "repetition_penalty"),
    (CHAT, chat(n=0), "n"),
    (CHAT, chat(n=129), "n"),
    (CHAT, chat(n="2"), "n"),
    (CHAT, chat(n=10**30), "n"),
    (CHAT, chat(max_tokens=0), "max_tokens"),
    (CHAT, chat(max_tokens=-1), "max_tokens"),
    (CHAT, chat(max_tokens=2.5), "max_tokens"),
    (CHAT, chat(max_tokens=10**25), "max_tokens"),
    (CHAT, chat(min_tokens=3), "min_tokens"),
    (CHAT, chat(seed="x"), "seed"),
    (CHAT, chat(seed=2**70), "seed"),
    (CHAT, chat(stream="yes"), "stream"),
    (CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
    (CHAT, chat(stream=True, stream_options={"shout": True}), "stream_options.shout"),
    (CHAT, chat(stop=""), "stop"),
    (CHAT, chat(stop=["a"] * 17), "stop"),
    (CHAT, chat(stop=[1]), "stop"),
    (CHAT, chat(stop="x" * 5000), "stop"),
    (CHAT, chat(top_logprobs=3), "top_logprobs"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    (CHAT, chat(logprobs=5), "logprobs"),
    (CHAT, chat(logit_bias={"x": 1}), "logit_bias"),
    (CHAT, chat(logit_bias={"5": 101}), "logit_bias"),
    (CHAT, chat(logit_bias={"5": True}), "logit_bias"),
    (CHAT, chat(logit_bias={"999999": 1}), "logit_bias"),
    (CHAT, chat(logit_bias=[1]), "logit_bias"),
    (CHAT, chat(logit_bias={"5": 1, "05": 2}), "logit_bias"),
    (CHAT, chat(stop_token_ids=[999_999]), "stop_token_ids"),
    (CHAT, chat(stop_token_ids=[-1]), "stop_token_ids"),
    (CHAT, chat(deadline_s=0), "deadline_s"),
    (CHAT, chat(priority=2), "priority"),
    (CHAT, chat(messages=[]), "messages"),
    (CHAT, chat(messages="hi"), "messages"),
    (CHAT, chat(messages=["hi"]), "messages[0]"),
    (CHAT, chat(messages=[{"role": "robot", "content": "x"}]), "messages[0].role"),
    (CHAT, chat(messages=[{"role": "tool", "content": "x"}]), "messages[0].role"),
    (CHAT, chat(messages=[{"role": "user"}]), "messages[0].content"),
    (CHAT, chat(messages=[{"role": "user", "content": None}]), "messages[0].content"),
    (CHAT, chat(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
    (
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        "messages[0].content",
    ),
    (CHAT, chat(messages=[*MESSAGES, {"role": "user", "content": "x", "z": 1}]), "messages[1].z"),
    (CHAT, chat(messages=MESSAGES * 5000), "messages"),
    (CHAT, chat(tools=[{"type": "function"}]), "tools"),
    (CHAT, chat(response_format={"type": "json_object"}), "response_format"),
    (CHAT, chat(reasoning_effort="high"), "reasoning_effort"),
    (CHAT, chat(temprature=1), "temprature"),
    (CHAT, chat(max_completion_tokens=3), "max_completion_tokens"),
    (CHAT, {"messages": MESSAGES}, "model"),
    (CHAT, {"model": "echo"}, "messages"),
    (CHAT, chat(model=5), "model"),
    (TEXT, {"model": "echo"}, "prompt"),
    (TEXT, text(prompt=[]), "prompt"),
    (TEXT, text(prompt=[[]]), "prompt"),
    (TEXT, text(prompt=""), "prompt"),
    (TEXT, text(prompt=["a", 5]), "prompt"),
    (TEXT, text(prompt=[5, "a"]), "prompt"),
    (TEXT, text(prompt=[[1], "a"]), "prompt"),
    (TEXT, text(prompt=[True]), "prompt"),
    (TEXT, text(prompt=[1.5]), "prompt"),
    (TEXT, text(prompt=[0.5] * 100_000), "prompt"),
    (TEXT, text(prompt=[999_999]), "prompt"),
    (TEXT, text(prompt=[-1]), "prompt"),
    (TEXT, text(prompt=[10**40]), "prompt"),
    (TEXT, text(prompt={"a": 1}), "prompt"),
    (TEXT, text(prompt=["x"] * 2000), "prompt"),
    (TEXT, text(prompt=["x"] * 100, n=100), "n"),
    (TEXT, text(suffix="end"), "suffix"),
    (TEXT, text(best_of=3), "best_of"),
    (TEXT, text(logprobs=21), "logprobs"),
    (TEXT, text(logprobs=-1), "logprobs"),
    (TEXT, text(logprobs=True), "logprobs"),
    (TEXT, text(echo=True, logprobs=1), "logprobs"),
    (TEXT, text(messages=MESSAGES), "messages"),
]


@pytest.mark.parametrize(("path", "body", "param"), FIELDS)
async def test_each_wrong_field_is_named(
    asgi: httpx.AsyncClient, service: EchoService, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await asgi.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["param"] == param
    assert not service.submitted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", "me"),
        ("metadata", {"deep": [[[]]]}),
        ("store", False),
        ("service_tier", "auto"),
        ("prompt_cache_key", "k"),
        ("safety_identifier", "s"),
        ("tools", []),
        ("tools", None),
        ("tool_choice", "none"),
        ("parallel_tool_calls", True),
        ("response_format", {"type": "text"}),
        ("modalities", ["text"]),
        ("temperature", None),
        ("stop", None),
        ("top_k", -1),
        ("n", None),
    ],
)
async def test_what_asks_for_nothing_is_accepted(
    asgi: httpx.AsyncClient, name: str, value: object
) -> None:
    answer = await asgi.post(CHAT, json=chat(**{name: value}))
    assert answer.status_code == 200, answer.text


BODIES: list[tuple[bytes, str]] = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"\xff\xfe", "UTF-8"),
    (b"[]", "JSON object"),
    (b"null", "JSON object"),
    (b"5", "JSON object"),
    (b'{"model": "echo", "temperature": NaN}', "NaN"),
    (b'{"model": "echo", "temperature": -Infinity}', "-Infinity"),
    (b'{"model": "echo", "temperature": 1e999, "messages": []}', "temperature"),
    (b'{"model": "echo", "model": "other"}', "twice"),
    (b'{"model": "echo", "max_tokens": ' + b"9" * 5000 + b"}", "digits"),
    (b"[" * 200_000, "nested"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested"),
    (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', "model"),
    (b'{"\\ud800": 1}', "unknown"),
]


@pytest.mark.parametrize(("body", "words"), BODIES, ids=range(len(BODIES)))
async def test_bodies_that_are_no_json_object(
    asgi: httpx.AsyncClient, body: bytes, words: str
) -> None:
    answer = await asgi.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert words in error_of(answer)["message"]


async def test_lone_surrogates_in_text_are_survived(http: httpx.AsyncClient) -> None:
    body = b'{"model": "echo", "max_tokens": 2, "prompt": "a\\ud800b", "echo": true}'
    answer = await http.post(TEXT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"].startswith("a\ufffd")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_only_json_by_its_headers(http: httpx.AsyncClient, kind: str | None) -> None:
    headers = {"content-type": kind} if kind is not None else {}
    answer = await http.post(CHAT, content=json.dumps(chat()), headers=headers)
    assert answer.status_code == 415
    assert "application/json" in error_of(answer)["message"]


async def test_packed_bodies_are_refused(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await http.post(CHAT, content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415
    assert "gzip" in error_of(answer)["message"]


@pytest.mark.parametrize("extra", [0, 1, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_up_to_the_limit(http: httpx.AsyncClient, extra: int, chunked: bool) -> None:
    limit = 1024 * 1024
    body = json.dumps(chat(user="")).encode()
    body = body.replace(b'"user": ""', b'"user": "' + b"x" * (limit + extra - len(body)) + b'"')
    assert len(body) == limit + extra

    async def pieces() -> Any:
        for at in range(0, len(body), 50_000):
            yield body[at : at + 50_000]

    headers = {"content-type": "application/json"}
    answer = await http.post(CHAT, content=pieces() if chunked else body, headers=headers)
    if extra == 0:
        assert answer.status_code == 200
    else:
        assert answer.status_code == 413
        assert "1048576 bytes" in error_of(answer)["message"]
    # The connection, or the next one, serves on.
    assert (await http.post(CHAT, json=chat())).status_code == 200


async def test_an_expecting_client_is_told_before_it_sends(gateway: GatewayServer) -> None:
    port = gateway.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 99999999\r\nexpect: 100-continue\r\n\r\n"
    )
    assert b"413" in await asyncio.wait_for(reader.readline(), 240)
    writer.close()


async def test_paths_and_methods_that_are_not(http: httpx.AsyncClient) -> None:
    for method, path, status in [
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/models/%ff%fe", 404),
    ]:
        answer = await http.request(method, path)
        assert answer.status_code == status, path
        error_of(answer)


class TestKeys:
    @pytest.fixture
    def settings(self) -> HttpSection:
        digest = hashlib.sha256(b"sk-right").hexdigest()
        return HttpSection(port=0, api_keys=("0" * 64, digest.upper()))

    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer sk-wrong",
            "Basic sk-right",
            "sk-right",
            "Bearer sk-right2",
            "Bearer " + "x" * 10_000,
            b"Bearer \xff\xfe",
        ],
    )
    async def test_no_or_wrong_keys(
        self, http: httpx.AsyncClient, header: str | bytes | None
    ) -> None:
        headers = {"authorization": header} if header is not None else {}
        for method, path in [("GET", "/v1/models"), ("POST", CHAT), ("GET", "/v1/models/echo")]:
            answer = await http.request(method, path, headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 401
            assert error_of(answer)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"

    async def test_the_right_key(self, http: httpx.AsyncClient, service: EchoService) -> None:
        for value in ("Bearer sk-right", "bearer sk-right", "Bearer  sk-right"):
            answer = await http.post(CHAT, json=chat(), headers={"authorization": value})
            assert answer.status_code == 200
        owner = hashlib.sha256(b"sk-right").hexdigest()[:16]
        assert [g.owner for g in service.submitted] == [owner] * 3, "by which it is shared fairly"

    async def test_health_and_metrics_need_none(self, http: httpx.AsyncClient) -> None:
        for path in ("/health", "/ready", "/metrics"):
            assert (await http.get(path)).status_code == 200
