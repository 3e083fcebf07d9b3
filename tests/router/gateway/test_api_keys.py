"""Keys from a file: limits that are told, operators, revocation under way; and none at all."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from helix_mq import watched_files
from helix_mq.api_keys import KeyLimits, add_api_key, revoke_api_key
from helix_mq.clock import SystemClock
from helix_mq.errors import ConfigError
from router.gateway import GatewayServer, build_app
from router.gateway.auth import ApiKeys, needs_operator
from router.metrics import RouterMetrics
from router.settings import HttpSection
from tests.echo_service import EchoService
from tests.router.gateway.test_refusals import CHAT, TEXT, chat, error_of, text


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.toml"


@pytest.fixture
def key(path: Path) -> str:
    limits = KeyLimits(requests_per_min=3, tokens_per_min=50, max_concurrent=2)
    return add_api_key(path, "alice", limits, operator=False)


@pytest.fixture
def root(path: Path) -> str:
    return add_api_key(path, "root", KeyLimits(), operator=True)


@pytest.fixture
def settings(path: Path, key: str, root: str) -> HttpSection:
    fixed = hashlib.sha256(b"sk-fixed").hexdigest()
    return HttpSection(port=0, keys_file=path, api_keys=(fixed,))


async def test_limits_are_told_with_what_they_are(
    http: httpx.AsyncClient, key: str, root: str
) -> None:
    for _ in range(3):
        answer = await http.post(CHAT, json=chat(), headers=bearer(key))
        assert answer.status_code == 200
    answer = await http.post(CHAT, json=chat(), headers=bearer(key))
    assert answer.status_code == 429
    error = error_of(answer)
    assert "requests_per_min = 3" in error["message"]
    assert (error["type"], error["code"], error["param"]) == (
        "rate_limit_error", "rate_limit_exceeded", "requests_per_min",
    )  # fmt: skip
    assert 1 <= int(answer.headers["retry-after"]) <= 61
    assert (await http.get("/v1/models", headers=bearer(key))).status_code == 200
    for other in (root, "sk-fixed"):
        assert (await http.post(CHAT, json=chat(), headers=bearer(other))).status_code == 200


async def test_tokens_count_prompts_once_and_answers_as_they_come(
    http: httpx.AsyncClient, key: str, service: EchoService
) -> None:
    body = text(prompt="x" * 20, n=2, max_tokens=10)
    answer = await http.post(TEXT, json=body, headers=bearer(key))
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (20, 20)
    assert (await http.post(TEXT, json=body, headers=bearer(key))).status_code == 200
    refused = await http.post(TEXT, json=body, headers=bearer(key))
    assert refused.status_code == 429
    assert error_of(refused)["param"] == "tokens_per_min"


async def test_sequences_at_a_time_are_freed_when_they_end(
    http: httpx.AsyncClient, key: str, service: EchoService
) -> None:
    service.hold_at = 1
    held = asyncio.create_task(http.post(TEXT, json=text(n=2), headers=bearer(key)))
    await service.until_open(2)
    refused = await http.post(TEXT, json=text(), headers=bearer(key))
    assert refused.status_code == 429
    assert error_of(refused)["param"] == "max_concurrent"
    never = await http.post(TEXT, json=text(n=3), headers=bearer(key))
    assert never.status_code == 429
    service.go.set()
    assert (await held).status_code == 200
    never = await http.post(TEXT, json=text(n=3), headers=bearer(key))
    assert never.status_code == 400
    assert error_of(never)["param"] == "n"


async def test_bad_bodies_give_their_place_back(http: httpx.AsyncClient, key: str) -> None:
    for _ in range(3):
        assert (await http.post(TEXT, json={}, headers=bearer(key))).status_code == 400
    refused = await http.post(TEXT, json={}, headers=bearer(key))
    assert error_of(refused)["param"] == "requests_per_min"


async def test_keys_come_and_go_while_the_server_runs(
    http: httpx.AsyncClient,
    service: EchoService,
    path: Path,
    key: str,
    gateway: GatewayServer,
) -> None:
    service.hold_at = 1
    body = text(stream=True, max_tokens=9)
    async with http.stream("POST", TEXT, json=body, headers=bearer(key)) as answer:
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        assert revoke_api_key(path, "alice")
        late = add_api_key(path, "late", KeyLimits(), operator=False)
        rest = [line async for line in lines]
        # 2 s on a machine that has nothing else to do.
        assert loop.time() - started_s < 10.0
    assert "this API key was revoked" in "".join(rest)
    assert "data: [DONE]" not in rest
    await service.until_open(0)
    assert (await http.get("/v1/models", headers=bearer(key))).status_code == 401
    assert (await http.get("/v1/models", headers=bearer(late))).status_code == 200


class Said(logging.Handler):
    """Waits for the log to say something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self.heard = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.heard.set()


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("nonsense"), Path.unlink])
async def test_a_file_that_cannot_be_read_changes_nothing(
    http: httpx.AsyncClient, path: Path, key: str, spoil: Callable[[Path], object]
) -> None:
    said = Said("stays in force")
    watched_files.log.addHandler(said)
    try:
        spoil(path)
        async with asyncio.timeout(240):
            await said.heard.wait()
    finally:
        watched_files.log.removeHandler(said)
    assert (await http.get("/v1/models", headers=bearer(key))).status_code == 200


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="helix-mq keys api new NAME"):
        ApiKeys((), tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("method", "path", "needs"),
    [
        ("POST", "/v1/helix/replan", True),
        ("POST", "/v1/helix/placement", True),
        ("POST", "/v1/helix/nodes/a/drain", True),
        ("PUT", "/v1/helix/anything-new", True),
        ("GET", "/v1/helix/requests", True),
        ("GET", "/v1/helix/requests/18f3.abc/trace", True),
        ("GET", "/v1/helix/cluster", False),
        ("POST", "/v1/helix/whatif", False),
        ("POST", "/v1/chat/completions", False),
        ("GET", "/v1/models", False),
    ],
)
def test_what_only_operators_may_do(method: str, path: str, needs: bool) -> None:
    assert needs_operator(method, path) is needs


class TestOperating:
    async def test_only_with_an_operators_key(
        self, http: httpx.AsyncClient, key: str, root: str
    ) -> None:
        # There is no operator behind this gateway: who is let through finds nothing.
        for who, status in ((key, 403), ("sk-fixed", 403), (root, 404), ("wrong", 401)):
            answer = await http.post("/v1/helix/replan", headers=bearer(who))
            assert answer.status_code == status
        answer = await http.post("/v1/helix/replan", headers=bearer(key))
        assert error_of(answer)["type"] == "permission_error"
        assert "--operator" in error_of(answer)["message"]

    async def test_keys_of_the_settings_may_where_there_is_no_file(
        self, service: EchoService
    ) -> None:
        digest = hashlib.sha256(b"sk-fixed").hexdigest()
        async with await asgi(service, HttpSection(api_keys=(digest,))) as http:
            answer = await http.post("/v1/helix/replan", headers=bearer("sk-fixed"))
            assert answer.status_code == 404

    @pytest.mark.parametrize(
        ("client", "headers", "status"),
        [
            ("127.0.0.1", {}, 404),
            ("::1", {"host": "[::1]:8000", "origin": "http://[::1]:8000"}, 404),
            ("127.0.0.1", {"host": "localhost:8000", "origin": "http://localhost:8000"}, 404),
            ("10.0.0.7", {}, 403),
            ("127.0.0.1", {"host": "127.0.0.1:8000", "origin": "https://evil.example"}, 403),
            ("127.0.0.1", {"host": "127.0.0.1:8000", "origin": "null"}, 403),
            # A name of theirs that was made to point here.
            ("127.0.0.1", {"host": "evil.example", "origin": "http://evil.example"}, 403),
        ],
    )
    async def test_without_keys_from_this_machine_and_its_own_pages(
        self, service: EchoService, client: str, headers: dict[str, str], status: int
    ) -> None:
        async with await asgi(service, HttpSection(), client) as http:
            answer = await http.post("/v1/helix/replan", headers=headers)
            assert answer.status_code == status
            asked = await http.post("/v1/helix/whatif", headers=headers, json={})
            assert asked.status_code == status
            assert (await http.get("/v1/models", headers=headers)).status_code == 200

    @pytest.mark.parametrize("path", ["/v1/helix/requests", "/v1/helix/requests/1.a/trace"])
    @pytest.mark.parametrize(
        ("client", "headers", "status"),
        [
            ("127.0.0.1", {"host": "127.0.0.1:8000"}, 404),
            ("::1", {"host": "[::1]:8000", "origin": "http://[::1]:8000"}, 404),
            ("10.0.0.7", {"host": "127.0.0.1:8000"}, 403),
            ("127.0.0.1", {"host": "127.0.0.1:8000", "origin": "https://evil.example"}, 403),
            # What a page of a name that was made to point here reads comes without an origin.
            ("127.0.0.1", {"host": "evil.example:8000"}, 403),
        ],
    )
    async def test_without_keys_requests_are_shown_here_only(
        self, service: EchoService, path: str, client: str, headers: dict[str, str], status: int
    ) -> None:
        async with await asgi(service, HttpSection(), client) as http:
            assert (await http.get(path, headers=headers)).status_code == status


async def asgi(
    service: EchoService, settings: HttpSection, client: str = "127.0.0.1"
) -> httpx.AsyncClient:
    app = build_app(service, settings, RouterMetrics(SystemClock()))
    transport = httpx.ASGITransport(app, client=(client, 1234))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")
