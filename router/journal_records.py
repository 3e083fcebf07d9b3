"""What the router's journal holds of a request, and how that is written down. Pure.

A request is opened once, gets tokens numbered from 0, and is ended once. Records are JSON arrays,
so that a journal can be read with `sqlite3` alone; what is read back is checked like anything else
that comes from outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from helix_mq.ids import RequestId
from helix_mq.messages import client
from helix_mq.packing import U31, U63
from helix_mq.sampling import SamplingParams
from helix_mq.sdk.errors import failed, rebuilt
from router.service import Broken, Finished, Generation, Origin, TokenLogprob


class BadRecord(Exception):
    """A row of the journal is not what this version writes."""


@dataclass(frozen=True, slots=True)
class Opened:
    """`life`: which start of a router on this journal it came to; 0 until it is written."""

    request: RequestId
    generation: Generation
    origin: Origin
    model: str
    model_digest: str
    arrived_ms: int
    """Unix time, as all times here."""
    deadline_ms: int
    life: int = 0

    @property
    def first(self) -> RequestId:
        """The request under whose name this one can be asked for: n choices have one name."""
        return self.origin.first if self.origin.first is not None else self.request


@dataclass(frozen=True, slots=True)
class TokenKept:
    request: RequestId
    index: int
    token: int
    at_ms: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    request: RequestId
    at_ms: int
    end: Finished | Broken


@dataclass(frozen=True, slots=True)
class Value:
    """A named value of another part of the router; replaces the one before."""

    name: str
    data: bytes


Record = Opened | TokenKept | Ended | Value


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request as it was read back: its tokens so far without a gap, and its end if it has one."""

    opened: Opened
    tokens: tuple[TokenKept, ...]
    ended: Ended | None


@dataclass(frozen=True, slots=True)
class EndedStream:
    """An SDK client's stream that has ended: what it is found by when the client asks for it."""

    request: RequestId
    secret: str
    user: str | None
    reference: int


class _Body(msgspec.Struct, array_like=True, frozen=True):
    prompt_ids: tuple[U31, ...]
    sampling: SamplingParams
    stop: tuple[str, ...]
    priority: int
    owner: str
    continues_text: bool
    model: str
    model_digest: str
    arrived_ms: U63
    choice: int = 0


class _Finish(msgspec.Struct, array_like=True, frozen=True, tag="finished"):
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    queue_s: float
    ttft_s: float
    total_s: float
    reroutes: int
    stop_reason: str | int | None
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class _Break(msgspec.Struct, array_like=True, frozen=True, tag="broken"):
    code: str
    message: str
    param: str | None
    http_status: int
    retry_after_s: float | None


class _Logprob(msgspec.Struct, array_like=True, frozen=True):
    token: U31
    logprob: float
    top: tuple[tuple[U31, float], ...]


def body_of(opened: Opened) -> msgspec.Raw:
    """Everything of a request that only its own restart needs."""
    generation = opened.generation
    return msgspec.Raw(
        msgspec.json.encode(
            _Body(
                generation.prompt_ids,
                generation.sampling,
                tuple(stop for stop in generation.stop if _can_occur(stop)),
                generation.priority,
                generation.owner,
                generation.continues_text,
                opened.model,
                opened.model_digest,
                opened.arrived_ms,
                opened.origin.choice,
            )
        )
    )


def opened_of(
    request: int,
    first: int,
    secret: str,
    user: str | None,
    reference: int | None,
    life: int,
    deadline_ms: int,
    body: str,
) -> Opened:
    """Raises BadRecord."""
    read = _decoded(body, _Body)
    return Opened(
        RequestId(request),
        Generation(
            read.prompt_ids,
            read.sampling,
            read.stop,
            None,
            read.priority,
            read.owner,
            read.continues_text,
        ),
        Origin(secret, user, reference, RequestId(first), read.choice),
        read.model,
        read.model_digest,
        read.arrived_ms,
        deadline_ms,
        life,
    )


def logprob_of(logprob: TokenLogprob | None) -> _Logprob | None:
    return _Logprob(logprob.token, logprob.logprob, logprob.top) if logprob is not None else None


def token_of(request: int, index: int, token: int, at_ms: int, logprob: str | None) -> TokenKept:
    """Raises BadRecord."""
    kept = None
    if logprob is not None:
        read = _decoded(logprob, _Logprob)
        kept = TokenLogprob(read.token, read.logprob, read.top)
    return TokenKept(RequestId(request), index, token, at_ms, kept)


def end_of(end: Finished | Broken) -> msgspec.Struct:
    if isinstance(end, Broken):
        said = failed(0, end.error)
        return _Break(
            said.code, _utf8(said.message), said.param, said.http_status, said.retry_after_s
        )
    return _Finish(
        end.finish_reason,
        end.prompt_tokens,
        end.output_tokens,
        end.queue_s,
        end.ttft_s,
        end.total_s,
        end.reroutes,
        end.stop_reason,
        end.cached_tokens,
        end.drafted_tokens,
        end.accepted_tokens,
    )


def ended_of(request: int, at_ms: int, body: str) -> Ended:
    """Raises BadRecord."""
    end: Any = _decoded(body, _Finish | _Break)
    if isinstance(end, _Break):
        said = client.Failed(
            0, end.code, end.message, end.param, end.http_status, end.retry_after_s
        )
        return Ended(RequestId(request), at_ms, Broken(rebuilt(said)))
    return Ended(RequestId(request), at_ms, Finished(*msgspec.structs.astuple(end)))


def cost_bytes(record: Record) -> int:
    """About what a record takes in memory until it is written."""
    match record:
        case Opened():
            return 2048 + 40 * len(record.generation.prompt_ids)
        case TokenKept():
            return 400 + (150 * (1 + len(record.logprob.top)) if record.logprob else 0)
        case Value():
            return 200 + len(record.data)
        case _:
            return 600


def _decoded(text: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeError) as e:
        raise BadRecord(str(e)) from None


def _can_occur(stop: str) -> bool:
    """JSON may carry lone surrogates, no output does, and neither does the journal."""
    return _utf8(stop) == stop


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
