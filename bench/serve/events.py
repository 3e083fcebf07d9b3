"""Server-sent events of OpenAI's two endpoints, out of bytes as they come. No sockets, no clock.

Only what is measured is read of a chunk; an event is decoded once, in a few microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from bench.serve.seen import Seen
from helix_mq.errors import PeerError

MAX_EVENT_BYTES = 1 << 20
_DONE = b"[DONE]"


class BadStream(PeerError):
    code = "bad_stream"


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    """A completion's choice has `text`, a chat's `delta`."""

    text: str | None = None
    delta: Delta | None = None

    @property
    def has_output(self) -> bool:
        if self.text:
            return True
        delta = self.delta
        return delta is not None and bool(
            delta.content or delta.reasoning_content or delta.reasoning
        )


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(Chunk)


class EventLines:
    """Cuts a body into the data of its events. Raises BadStream for one that is too long."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, body: bytes) -> Iterator[bytes]:
        *lines, self._rest = (self._rest + body).split(b"\n")
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise BadStream(f"an event of more than {MAX_EVENT_BYTES} bytes")
        for raw in lines:
            line = raw[:-1] if raw.endswith(b"\r") else raw
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                data, self._data = self._data, []
                yield data[0] if len(data) == 1 else b"\n".join(data)


def take_event(data: bytes, seen: Seen, at_s: float) -> bool:
    """Takes an event that came at `at_s`; whether it has output. Raises BadStream."""
    if data == _DONE:
        seen.finished = True
        return False
    try:
        chunk = _decoder.decode(data)
    except msgspec.MsgspecError as e:
        raise BadStream(f"an event that is no chunk: {e}") from None
    if chunk.error is not None:
        seen.code = error_code(chunk.error)
        return False
    if chunk.usage is not None:
        seen.prompt_tokens = chunk.usage.prompt_tokens
        seen.tokens = chunk.usage.completion_tokens
    if not any(choice.has_output for choice in chunk.choices):
        return False
    seen.at_s.append(at_s)
    return True


def error_code(error: object) -> str:
    """Of an error's JSON: its code, or its type, or what it says."""
    if not isinstance(error, dict):
        return str(error)
    return str(error.get("code") or error.get("type") or error.get("message") or "error")


def refusal_code(body: bytes) -> str:
    """Of the body of an answer that is not 200; empty where it is no JSON. Servers differ: `error`
    an object, or its fields at the top."""
    try:
        answer = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return ""
    if not isinstance(answer, dict):
        return ""
    error = answer.get("error", answer)
    if isinstance(error, dict) and error.get("message") and error.get("param"):
        return f"{error_code(error)} ({error['param']})"
    return error_code(error)
