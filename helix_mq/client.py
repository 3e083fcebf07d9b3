"""The async client of a helix_mq router: stream, generate, chat, models, cancel.

    async with helix_mq.Client("tcp://127.0.0.1:7100") as client:
        async for token in client.stream("The capital of France is", max_tokens=20):
            print(token.text, end="", flush=True)

When the connection breaks, open streams wait for it to come back and go on where they were: no
token is repeated or lost. Errors are those of helix_mq.errors, as the router raised them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Unpack

import msgspec

from helix_mq.clock import Clock, SystemClock
from helix_mq.errors import ConfigError, ConnectionLost, HelixError, LocalError
from helix_mq.keys import load_key, load_public_key
from helix_mq.messages import client as wire
from helix_mq.sdk.link import Address, LinkEvents, RouterLink
from helix_mq.sdk.options import ClientOptions, RequestOptions
from helix_mq.sdk.results import Completion, Models
from helix_mq.sdk.streams import Streams, new_reference
from helix_mq.sdk.submission import Prompt, submit_chat, submit_prompt
from helix_mq.sdk.token_stream import TokenStream
from helix_mq.transport import ClientSecurity, KeyPair, Transport, ZmqTransport

DEFAULT_ENDPOINT = "tcp://127.0.0.1:7100"


class Client:
    """One connection to a router, for any number of streams at once, within one event loop."""

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        key: KeyPair | Path | None = None,
        server_key: str | Path | None = None,
        insecure: bool = False,
        options: ClientOptions | None = None,
        transport: Transport | None = None,
    ) -> None:
        """`key`: this client's pair, or its NAME.key file. `server_key`: the router's public key,
        or its NAME.pub file. Both or neither; neither works on loopback, elsewhere with `insecure`.

        Raises ConfigError.
        """
        self._options = options or ClientOptions()
        self._clock: Clock = SystemClock()
        self._own_transport = transport is None
        self._transport = transport
        address = Address(endpoint, _security(key, server_key), insecure)
        events = LinkEvents(self._on_up, self._on_down, self._on_lost, self._on_message)
        self._link = RouterLink(address, self._options, events, self._clock)
        self._streams = Streams(self._link.send, self._clock, self._options.max_streams)
        self._asking: list[asyncio.Future[Models]] = []
        self._connecting: asyncio.Lock = asyncio.Lock()
        self._connected = False
        self._closed = False

    async def __aenter__(self) -> Client:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connects and waits for the router's first answer; once is enough.

        Raises ConnectionLost, whose text says what to check, or ConfigError for a bad endpoint.
        """
        async with self._connecting:
            if self._closed:
                raise LocalError("this client is closed: make a new one")
            if self._connected:
                return
            self._transport = self._transport or ZmqTransport()
            await self._link.open(self._transport)
            self._connected = True
            await self.models()

    async def close(self) -> None:
        """Cancels what is open and closes the connection."""
        if self._closed:
            return
        self._closed = True
        error = LocalError("the client was closed")
        self._streams.cancel_all()
        self._fail(error)
        await self._link.close()
        if self._own_transport and self._transport is not None:
            await self._transport.close()

    def stream(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> TokenStream:
        """Continues a text, or token ids; yields Tokens as they come. See RequestOptions.

        Raises InvalidRequest at once for arguments out of range; iterating raises what the router
        refuses, DeadlineExceeded, or ConnectionLost.
        """
        return TokenStream(self._ready, submit_prompt(new_reference(), prompt, options))

    def stream_chat(
        self, messages: Iterable[Mapping[str, str]], **options: Unpack[RequestOptions]
    ) -> TokenStream:
        """Answers a conversation of `{"role": ..., "content": ...}`; otherwise like `stream`."""
        return TokenStream(self._ready, submit_chat(new_reference(), messages, options))

    async def generate(self, prompt: Prompt, **options: Unpack[RequestOptions]) -> Completion:
        """The whole continuation of a text, or token ids. Raises like `stream`."""
        return await _whole(self.stream(prompt, **options))

    async def chat(
        self, messages: Iterable[Mapping[str, str]], **options: Unpack[RequestOptions]
    ) -> Completion:
        """The whole answer to a conversation. Raises like `stream`."""
        return await _whole(self.stream_chat(messages, **options))

    async def models(self) -> Models:
        """What the router serves. Raises ConnectionLost when it does not answer in time."""
        self._check_open()
        answer: asyncio.Future[Models] = asyncio.get_running_loop().create_future()
        self._asking.append(answer)
        self._link.send(wire.Models(()))
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                return await answer
        except TimeoutError:
            raise self._link.silent(self._options.connect_timeout_s) from None
        finally:
            if answer in self._asking:
                self._asking.remove(answer)

    def cancel(self, stream: TokenStream) -> None:
        """Asks the router to end a stream; it then ends with finish_reason `cancelled`."""
        stream.cancel()

    def _check_open(self) -> None:
        if self._closed or not self._connected:
            raise LocalError(
                "this client is not connected: use `async with Client(...)`, or call connect()"
            )

    async def _ready(self) -> Streams:
        self._check_open()
        await self._link.wait_up()
        return self._streams

    def _on_up(self) -> None:
        self._streams.on_up()

    def _on_down(self) -> None:
        self._streams.on_down()

    def _on_lost(self, error: HelixError) -> None:
        self._fail(error)

    def _fail(self, error: HelixError) -> None:
        self._streams.fail_all(error)
        for answer in self._asking:
            if not answer.done():
                answer.set_exception(ConnectionLost(error.message))
        self._asking.clear()

    def _on_message(self, message: msgspec.Struct) -> None:
        if isinstance(message, wire.Models):
            for answer in self._asking:
                if not answer.done():
                    answer.set_result(Models(message.models, message.serving))
            self._asking.clear()
        else:
            self._streams.on_message(message)


async def _whole(stream: TokenStream) -> Completion:
    async with stream:
        async for _ in stream:
            pass
        return stream.result()


def _security(key: KeyPair | Path | None, server_key: str | Path | None) -> ClientSecurity | None:
    if (key is None) != (server_key is None):
        missing, option = (
            ("key", "--key NAME.key") if key is None else ("server_key", "--server-key router.pub")
        )
        raise ConfigError(
            f"{missing} is missing ({option}): keys need both this client's pair and the router's "
            "public key",
            param=missing,
        )
    if key is None or server_key is None:
        return None
    pair = load_key(key) if isinstance(key, Path) else key
    public = load_public_key(server_key) if isinstance(server_key, Path) else server_key
    return ClientSecurity(pair, public)
