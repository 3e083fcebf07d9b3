"""Whatever a load is sent to: an OpenAI-compatible endpoint, or a router by our SDK."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from bench.serve.events import EventLines, refusal_code, take_event
from bench.serve.http import Pool, parse_base
from bench.serve.seen import Seen
from bench.serve.types import HttpTarget, SdkTarget
from helix_mq.client import Client
from helix_mq.clock import Clock
from helix_mq.errors import ConfigError, HelixError, LocalError
from helix_mq.sdk.options import ClientOptions, RequestOptions

MAX_REFUSAL_BYTES = 64 << 10
MAX_STREAMS = 100_000
Prepared = object
"""A request made ready to be sent; each target has its own."""
OnEvent = Callable[[], None]


class Target(Protocol):
    async def open(self) -> None:
        """Raises ConnectionLost or ConfigError."""
        ...

    def prepare(self, prompt: str, tokens: int) -> Prepared:
        """Everything that can be done before it is due. `tokens`: the most of the answer."""
        ...

    async def send(self, prepared: Prepared, seen: Seen, on_event: OnEvent) -> None:
        """Sends it and waits for its end, keeping in `seen` what comes; `on_event` is called for
        every event with output. Raises HelixError for what is no answer."""
        ...

    async def close(self) -> None: ...


class OpenAi:
    """`exact` and `temperature` as in Job."""

    def __init__(self, target: HttpTarget, exact: bool, temperature: float, clock: Clock) -> None:
        """Raises ConfigError when the key's variable is empty."""
        base = parse_base(target.url)
        key = os.environ.get(target.key_env, "") if target.key_env else ""
        if target.key_env and not key:
            raise ConfigError(
                f"api_key_env: the environment has no variable {target.key_env}, or it is empty",
                param="api_key_env",
            )
        if not all("!" <= c <= "~" for c in key):
            raise ConfigError(
                f"api_key_env: {target.key_env} holds characters that no header may",
                param="api_key_env",
            )
        self._pool = Pool(base, clock)
        self._target = target
        self._fields: dict[str, object] = {
            "model": target.model,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if exact:
            self._fields["ignore_eos"] = True
        self._fields.update(target.extra)
        path = f"{base.path}/{'chat/completions' if target.chat else 'completions'}"
        authorization = f"authorization: Bearer {key}\r\n" if key else ""
        self._head = (
            f"POST {path} HTTP/1.1\r\nhost: {base.host_header}\r\n{authorization}"
            "content-type: application/json\r\naccept: text/event-stream\r\ncontent-length: "
        ).encode()

    async def open(self) -> None:
        """Connections are made as they are needed."""

    def prepare(self, prompt: str, tokens: int) -> Prepared:
        said: dict[str, object] = (
            {"messages": [{"role": "user", "content": prompt}]}
            if self._target.chat
            else {"prompt": prompt}
        )
        body = msgspec.json.encode(said | {"max_tokens": tokens} | self._fields)
        return self._head + str(len(body)).encode() + b"\r\n\r\n" + body

    async def send(self, prepared: Prepared, seen: Seen, on_event: OnEvent) -> None:
        assert isinstance(prepared, bytes)
        lines, other = EventLines(), bytearray()

        def on_body(status: int, body: bytes, at_s: float) -> None:
            if status != 200:
                other.extend(body[: MAX_REFUSAL_BYTES - len(other)])
                return
            for event in lines.feed(body):
                if take_event(event, seen, at_s):
                    on_event()

        exchange = await self._pool.exchange(prepared, on_body)
        seen.status = exchange.status
        if exchange.status != 200:
            seen.code = refusal_code(bytes(other))

    async def close(self) -> None:
        self._pool.close()


class Sdk:
    """One client, one connection. Every token is an event, also one whose text is held back."""

    def __init__(self, target: SdkTarget, exact: bool, temperature: float, clock: Clock) -> None:
        self._client = Client(
            target.endpoint,
            key=Path(target.key) if target.key else None,
            server_key=Path(target.server_key) if target.server_key else None,
            insecure=target.insecure,
            options=ClientOptions(max_streams=MAX_STREAMS),
        )
        self._target = target
        self._options = RequestOptions(temperature=temperature, ignore_eos=exact)
        if target.model:
            self._options["model"] = target.model
        self._clock = clock

    async def open(self) -> None:
        await self._client.connect()

    def prepare(self, prompt: str, tokens: int) -> Prepared:
        return (prompt, tokens)

    async def send(self, prepared: Prepared, seen: Seen, on_event: OnEvent) -> None:
        assert isinstance(prepared, tuple)
        prompt, tokens = prepared
        options = RequestOptions(**{**self._options, "max_tokens": tokens})
        if self._target.chat:
            stream = self._client.stream_chat([{"role": "user", "content": prompt}], **options)
        else:
            stream = self._client.stream(prompt, **options)
        try:
            async with stream:
                async for token in stream:
                    if token.id is not None:
                        seen.at_s.append(self._clock.now_s())
                        on_event()
                usage = stream.result().usage
        except LocalError:
            raise
        except HelixError as e:
            seen.status, seen.code = e.http_status, e.code
            return
        seen.prompt_tokens, seen.tokens = usage.prompt_tokens, usage.output_tokens
        seen.finished = True

    async def close(self) -> None:
        await self._client.close()


def make_target(
    target: HttpTarget | SdkTarget, exact: bool, temperature: float, clock: Clock
) -> Target:
    """Raises ConfigError."""
    if isinstance(target, HttpTarget):
        return OpenAi(target, exact, temperature, clock)
    return Sdk(target, exact, temperature, clock)
