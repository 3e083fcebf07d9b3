"""`helix-mq prompt` as a process, against a router's client sockets."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from helix_mq import keys
from helix_mq.transport import KeyPair, ZmqTransport
from router.clients import ClientSockets
from router.security import RouterSecurity
from router.settings import SecuritySection
from tests.echo_service import EchoService

RUN = """
import typer
from helix_mq.cli import prompt
from helix_mq.errors import HelixError
app = typer.Typer(pretty_exceptions_enable=False)
prompt.register(app)
app.callback()(lambda: None)
try:
    app()
except HelixError as e:
    raise SystemExit(f"helix-mq: {e}")
"""


@pytest.fixture
async def router(tiny_folder: Path) -> AsyncIterator[tuple[EchoService, str]]:
    service, transport = EchoService(tiny_folder), ZmqTransport()
    security = RouterSecurity(SecuritySection())
    sockets = ClientSockets(service, transport, "tcp://127.0.0.1:0", security)
    await sockets.start()
    yield service, sockets.endpoint
    await sockets.close()
    await transport.close()


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, "prompt", *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def test_it_streams_and_tells_the_speed(router: tuple[EchoService, str]) -> None:
    service, endpoint = router
    child = await start("hi", "--connect", endpoint, "--max-tokens", "7", "--temperature", "0")
    out, err = await child.communicate()
    assert child.returncode == 0, err
    got = service.submitted[0]
    turns = [{"role": "user", "content": "hi"}]
    assert got.prompt_ids == tuple(service.tokenizer.apply_chat_template(turns))
    assert out.decode() == service.text_of(got) + "\n"
    assert b"7 tokens (length)" in err
    assert b"tokens/s, time to first token" in err


async def test_json_from_stdin_with_options(router: tuple[EchoService, str]) -> None:
    service, endpoint = router
    child = await start(
        "-", "--raw", "--json", "--connect", endpoint, "--max-tokens", "3", "--seed", "4"
    )
    out, err = await child.communicate("grüße".encode())
    assert child.returncode == 0, err
    got = json.loads(out)
    assert got["text"] == service.text_of(service.submitted[0])
    none = dict.fromkeys(("cached_tokens", "drafted_tokens", "accepted_tokens"), 0)
    assert got["usage"] == {"prompt_tokens": 7, "output_tokens": 3, **none}
    assert service.submitted[0].sampling.seed == 4


async def test_a_system_message_comes_first(router: tuple[EchoService, str]) -> None:
    service, endpoint = router
    child = await start("hi", "--system", "be brief", "--connect", endpoint, "--max-tokens", "1")
    _, err = await child.communicate()
    assert child.returncode == 0, err
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert service.submitted[0].prompt_ids == tuple(service.tokenizer.apply_chat_template(turns))


async def test_ctrl_c_cancels_at_the_router(router: tuple[EchoService, str]) -> None:
    service, endpoint = router
    service.hold_at = 2
    child = await start("hi", "--connect", endpoint, "--max-tokens", "9")
    await service.until_open(1)
    assert child.stdout is not None
    await child.stdout.read(1)
    child.send_signal(signal.SIGINT)
    _, err = await child.communicate()
    assert child.returncode == 130, err
    assert b"Traceback" not in err
    await service.until_open(0)
    assert len(service.cancelled) == 1


async def test_a_router_with_keys_tells_a_client_without_what_to_give(
    tiny_folder: Path, tmp_path: Path
) -> None:
    allow = tmp_path / "allow.toml"
    keys.allow_key(allow, "@carol", KeyPair.new().public)
    key = keys.save_key(tmp_path, "router", KeyPair.new())
    security = RouterSecurity(SecuritySection(key_file=key, allow_file=allow))
    service, transport = EchoService(tiny_folder), ZmqTransport()
    sockets = ClientSockets(service, transport, "tcp://127.0.0.1:0", security)
    await sockets.start()
    try:
        child = await start("hi", "--connect", sockets.endpoint)
        _, err = await child.communicate()
    finally:
        await sockets.close()
        await transport.close()
    assert child.returncode == 1
    assert "this client has none" in err.decode()
    assert "--key NAME.key --server-key router.pub" in err.decode()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("hi", "--connect", "tcp://127.0.0.1"), "tcp://HOST:PORT"),
        (("hi", "--connect", "tcp://10.1.2.3:5"), "helix-mq keys new"),
        (("hi", "--temperature", "nan"), "temperature"),
        (("hi", "--raw", "--system", "x"), "--system"),
        (("hi", "--key", "/nowhere/x.key"), "server_key is missing (--server-key"),
        (("hi", "--server-key", "/nowhere/r.pub"), "key is missing (--key"),
        (("hi", "--key", "/nowhere/x.key", "--server-key", "/nowhere/r.pub"), "/nowhere/x.key"),
    ],
)
async def test_mistakes_end_in_one_sentence(arguments: tuple[str, ...], words: str) -> None:
    child = await start(*arguments)
    _, err = await child.communicate()
    assert child.returncode != 0
    assert words in err.decode()
    assert "Traceback" not in err.decode()
