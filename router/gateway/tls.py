"""TLS for HTTP: the certificate and its key from files, read again when they change.

Each connection shakes hands under the context of that moment, so new files drop nobody. A pair that
cannot be used is told in words and the one before stays. A connection has its place in the count
from its first byte on, and little time for the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from helix_mq.errors import ConfigError
from helix_mq.watched_files import WatchedFiles, reload_for_ever
from router.gateway.places import Holder, Places
from router.settings import HttpSection

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
_SHUTDOWN_S = 2.0
_ACCEPTS_PER_TURN = 16
_PAUSE_S = 1.0
_OTHERS_READ = 0o004

MakeProtocol = Callable[[Holder], asyncio.Protocol]


class TlsFiles:
    """`context` is what connections that are made now use."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises ConfigError for files that are missing, unreadable, or no pair."""
        self._cert = cert
        self._key = key
        self._watched = WatchedFiles(cert, key)
        self.context = self._load()

    @classmethod
    def of(cls, settings: HttpSection) -> TlsFiles | None:
        """None where the settings name no files. Raises ConfigError."""
        if settings.tls_cert is None and settings.tls_key is None:
            return None
        if settings.tls_cert is None or settings.tls_key is None:
            missing = "tls_cert" if settings.tls_cert is None else "tls_key"
            raise ConfigError(
                f"http.{missing} is missing: TLS needs a certificate and its key, both in PEM",
                param=f"http.{missing}",
            )
        return cls(settings.tls_cert, settings.tls_key)

    async def watch(self) -> None:
        await reload_for_ever(self._watched, self.reload, f"{self._cert} and {self._key}")

    def reload(self) -> None:
        """Raises ConfigError, and leaves the context as it was."""
        self.context = self._load()
        log.info("%s was read again: new connections get this certificate", self._cert)

    def _load(self) -> ssl.SSLContext:
        # A new context each time: one in use would keep the old certificate beside the new where
        # the two have keys of different kinds.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        _check_pem(self._cert, "http.tls_cert", "CERTIFICATE-----")
        _check_pem(self._key, "http.tls_key", "PRIVATE KEY-----")
        if self._key.stat().st_mode & _OTHERS_READ:
            log.warning("%s: everybody on this machine can read this key", self._key)
        try:
            context.load_cert_chain(self._cert, self._key, password=self._no_password)
        except ssl.SSLError as e:
            if e.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"http.tls_key = {self._key}: is not the key of {self._cert}",
                    param="http.tls_key",
                ) from None
            raise ConfigError(
                f"http.tls_cert = {self._cert}, http.tls_key = {self._key}: cannot be used: "
                f"{e.reason or e}",
                param="http.tls_cert",
            ) from None
        return context

    def _no_password(self) -> NoReturn:
        # Without this OpenSSL would ask for one on the terminal, and wait.
        raise ConfigError(
            f"http.tls_key = {self._key}: is encrypted, and there is nobody to ask for the "
            "password: store it without one, readable for the router alone",
            param="http.tls_key",
        )


def _check_pem(path: Path, name: str, what: str) -> None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise ConfigError(f"{name} = {path}: cannot be read: {e.strerror}", param=name) from None
    if what not in text:
        raise ConfigError(
            f"{name} = {path}: holds no `-----BEGIN ... {what}`: it must be PEM", param=name
        )


class TlsDoor:
    """Takes connections from listening sockets and has them shake hands.

    Its own accepting, since the event loops' servers tell of a connection only when its handshake
    is done: until then nothing would count it. Not `start_tls` on a plain connection either: uvloop
    reads from that before anybody can say who is to read.
    """

    def __init__(self, make: MakeProtocol, files: TlsFiles, places: Places) -> None:
        """`make`: gets the place that the new protocol takes over."""
        self._make = make
        self._files = files
        self._places = places
        self._loop = asyncio.get_running_loop()
        self._listening: set[socket.socket] = set()
        self._shaking: set[asyncio.Task[None]] = set()

    def listen(self, bound: socket.socket) -> None:
        """From now on until `close`; the socket listens already and does not block."""
        self._listening.add(bound)
        self._loop.add_reader(bound, self._accept, bound)

    async def close(self) -> None:
        """Takes no more connections, and ends the handshakes."""
        for bound in self._listening:
            self._loop.remove_reader(bound)
        self._listening.clear()
        for task in self._shaking:
            task.cancel()
        await asyncio.gather(*self._shaking, return_exceptions=True)

    def _accept(self, bound: socket.socket) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                peer, _address = bound.accept()
            except BlockingIOError:
                return
            except OSError as e:
                # Out of files, most likely. The connection stays in line: without a pause the loop
                # would do nothing else but try.
                log.error("cannot take a connection: %s", e.strerror)
                self._loop.remove_reader(bound)
                self._loop.call_later(_PAUSE_S, self._accept_again, bound)
                return
            handshake = _Handshake(peer)
            if not self._places.enter(handshake):
                peer.close()
                continue
            task = self._loop.create_task(self._shake(handshake), name="http-tls-handshake")
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    def _accept_again(self, bound: socket.socket) -> None:
        if bound in self._listening:
            self._loop.add_reader(bound, self._accept, bound)

    async def _shake(self, handshake: _Handshake) -> None:
        handshake.peer.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._make(handshake),
                handshake.peer,
                ssl=self._files.context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
        except OSError as e:
            # No TLS, too slow, or gone; SSLError is one, too.
            log.debug("a handshake failed: %s", e)
        finally:
            self._places.leave(handshake)


class _Handshake:
    """A connection before its handshake is done."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer

    def give_way(self) -> None:
        # Read as a hang-up by whoever owns the socket by now.
        with contextlib.suppress(OSError):
            self.peer.shutdown(socket.SHUT_RDWR)
