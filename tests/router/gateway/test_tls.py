"""HTTP behind TLS: files that are read again, bad ones in words, handshakes that never end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvloop

from helix_mq.clock import SystemClock
from helix_mq.errors import ConfigError
from router.gateway import GatewayServer
from router.gateway.tls import TlsFiles
from router.metrics import RouterMetrics
from router.settings import HttpSection
from tests.echo_service import EchoService

FILES = Path(__file__).parent / "tls"
BODY = {"model": "echo", "prompt": "x", "max_tokens": 9, "temperature": 0}
WAIT_S = 240.0


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    install("one", tmp_path)
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def install(name: str, folder: Path) -> None:
    """As a certificate client does it: whole files, one after the other."""
    for ending, target in (("crt", "cert.pem"), ("key", "key.pem")):
        shutil.copy(FILES / f"{name}.{ending}", folder / "new")
        os.chmod(folder / "new", 0o600)
        os.replace(folder / "new", folder / target)


@pytest.fixture
def settings(pair: tuple[Path, Path]) -> HttpSection:
    return HttpSection(port=0, tls_cert=pair[0], tls_key=pair[1], max_connections=20)


def trusting(*names: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for name in names:
        context.load_verify_locations(FILES / f"{name}.crt")
    return context


async def certificate_of(port: int) -> str:
    """The name on the certificate that a new connection gets."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting("one", "two", "rsa"))
    found = writer.get_extra_info("peercert")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return str(dict(x for (x,) in found["subject"])["commonName"])


async def test_requests_streams_and_large_bodies(
    gateway: GatewayServer, service: EchoService
) -> None:
    assert gateway.url.startswith("https://")
    async with httpx.AsyncClient(base_url=gateway.url, verify=trusting("one"), timeout=240) as http:
        answer = await http.post("/v1/completions", json=BODY)
        assert answer.json()["choices"][0]["text"] == service.text_of(service.submitted[0])
        streamed = await http.post("/v1/completions", json={**BODY, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        large = await http.post("/v1/completions", json={**BODY, "prompt": "x" * 900_000})
        assert large.json()["error"]["code"] == "context_length_exceeded"
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient(
            base_url=gateway.url, verify=trusting("two"), timeout=240
        ) as http:
            await http.get("/health")


async def test_new_files_drop_nobody(
    gateway: GatewayServer, service: EchoService, tmp_path: Path
) -> None:
    """Not even where the kind of key changes; a pair that is none changes nothing."""
    service.hold_at = 1
    async with httpx.AsyncClient(
        base_url=gateway.url, verify=trusting("one"), timeout=WAIT_S
    ) as http:
        held = asyncio.create_task(http.post("/v1/completions", json=BODY))
        await service.until_open(1)
        for name in ("rsa", "two"):
            loop = asyncio.get_running_loop()
            started_s = loop.time()
            install(name, tmp_path)
            while await certificate_of(gateway.port) != f"helix_mq test {name}":
                assert loop.time() - started_s < 10.0
        shutil.copy(FILES / "one.key", tmp_path / "key.pem")
        gateway._tls._watched.changed()  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match="is not the key of"):
            gateway._tls.reload()  # type: ignore[union-attr]
        assert await certificate_of(gateway.port) == "helix_mq test two"
        service.go.set()
        assert (await held).status_code == 200
        # Over the connection that was made under the first certificate.
        assert (await http.get("/health")).status_code == 200


async def test_what_is_no_handshake_costs_nobody_anything(gateway: GatewayServer) -> None:
    flood = [
        b"",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x40\x00" + b"x" * 20_000,
        os.urandom(100_000),
        b"\x16\x03\x01\x00\x05",
    ]
    crowd = []
    for number in range(150):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(flood[number % len(flood)])
        crowd.append((reader, writer))
    async with httpx.AsyncClient(base_url=gateway.url, verify=trusting("one"), timeout=240) as http:
        assert (await http.post("/v1/completions", json=BODY)).status_code == 200
    assert len(gateway.places) <= 20
    for _, writer in crowd:
        writer.close()


async def test_a_handshake_has_little_time(
    gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.gateway.tls.HANDSHAKE_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"\x16")
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(ConnectionResetError):
            assert not await reader.read()
    assert len(gateway.places) == 0
    writer.close()


def test_under_uvloop_with_the_request_on_the_handshakes_heels(
    tiny_folder: Path, settings: HttpSection
) -> None:
    """What comes in the same packet as the end of the handshake must not be lost."""

    def ask(port: int) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting("one").wrap_bio(incoming, outgoing, server_hostname="localhost")
        with contextlib.closing(_connect(port)) as peer:
            shaken = False
            while not shaken:
                try:
                    tls.do_handshake()
                    shaken = True
                except ssl.SSLWantReadError:
                    peer.sendall(outgoing.read())
                    answer = peer.recv(65536)
                    assert answer, "the other side hung up"
                    incoming.write(answer)
            body = json.dumps(BODY).encode()
            tls.write(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
            # The end of the handshake and the request at once.
            peer.sendall(outgoing.read())
            return b"".join(_answers(peer, tls, incoming))

    async def main() -> None:
        service = EchoService(tiny_folder)
        server = GatewayServer(service, settings, RouterMetrics(SystemClock()))
        await server.start()
        for _ in range(5):
            asked = (asyncio.to_thread(ask, server.port) for _ in range(4))
            for answer in await asyncio.gather(*asked):
                assert answer.startswith(b"HTTP/1.1 200")
        await server.stop()
        assert len(server.places) == 0

    uvloop.run(main())


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def _answers(peer: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO) -> Iterator[bytes]:
    """Until the other side says that this was all."""
    while data := peer.recv(65536):
        incoming.write(data)
        with contextlib.suppress(ssl.SSLWantReadError):
            while piece := tls.read(65536):
                yield piece
            return


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        ("none.crt", "one.key", "http.tls_cert = .*none.crt: cannot be read: No such file"),
        ("one.crt", "none.key", "http.tls_key = .*none.key: cannot be read: No such file"),
        ("one.crt", "two.key", "http.tls_key = .*two.key: is not the key of .*one.crt"),
        ("one.key", "one.crt", "http.tls_cert = .*one.key: holds no .*CERTIFICATE"),
        ("one.crt", "one.crt", "http.tls_key = .*one.crt: holds no .*PRIVATE KEY"),
        ("one.crt", "encrypted.key", "is encrypted"),
        ("one.crt", "rsa.key", "is not the key of|cannot be used"),
    ],
)
def test_files_that_are_no_pair_are_told_in_words(cert: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TlsFiles(FILES / cert, FILES / key)


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"http\.tls_key is missing"):
        TlsFiles.of(HttpSection(tls_cert=FILES / "one.crt"))
    with pytest.raises(ConfigError, match=r"http\.tls_cert is missing"):
        TlsFiles.of(HttpSection(tls_key=FILES / "one.key"))
