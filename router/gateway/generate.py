"""The endpoints that generate: one ASGI app for both, told apart by their Dialect.

Order: body, validation, tokens, submission of all choices or none, then stream or whole answer.
Whenever the connection closes, every sequence of the request is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from helix_mq.clock import Clock
from helix_mq.errors import HelixError, NotServing, Unauthorized
from router.gateway.auth import ApiKeys, Caller, caller_in
from router.gateway.body import (
    READ_TIMEOUT_S,
    ClientGone,
    check_headers,
    parse_json,
    read_body,
)
from router.gateway.chat import ChatDialect
from router.gateway.chat_request import ChatRequest
from router.gateway.choices import owned_by
from router.gateway.completion_request import CompletionRequest
from router.gateway.completions import CompletionDialect
from router.gateway.dialects import Dialect, Stamp
from router.gateway.fanout import Fanout, Item
from router.gateway.faults import error_json, error_response, plain_error_response
from router.gateway.quotas import Lease, Quotas
from router.gateway.sse import DONE, PING, ClientStalled, SseWriter, event
from router.service import Delta, Generation, Service

log = logging.getLogger(__name__)

RETRY_NOT_SERVING_S = 5.0
LARGE_BODY_BYTES = 32 * 1024
"""Bodies above this are read off the event loop: up to 10 ms for a core."""
ABORT_EXTENSION = "helix_mq.abort"


@dataclass(frozen=True, slots=True)
class Timings:
    """commit_after_s: an error before the first token gets a status of its own if it comes within
        this time; after it the response begins, so that proxies and clients see one.
    ping_s: how long a stream stays silent before a comment shows that it lives.
    stall_s: how long a client may take nothing of its stream.
    body_s: how long a body may take to arrive.
    """

    commit_after_s: float = 2.0
    ping_s: float = 15.0
    stall_s: float = 60.0
    body_s: float = READ_TIMEOUT_S


MakeDialect = Callable[[Mapping[str, Any], Service], Dialect]


def chat_dialect(body: Mapping[str, Any], service: Service) -> Dialect:
    return ChatDialect(ChatRequest.read(body), service)


def completion_dialect(body: Mapping[str, Any], service: Service) -> Dialect:
    return CompletionDialect(CompletionRequest.read(body), service)


@dataclass(frozen=True, slots=True)
class Doors:
    """Who may come in, and how often."""

    keys: ApiKeys
    quotas: Quotas


class OpenRequests:
    """The requests being served, so that a stopping server can end them with a reason."""

    def __init__(self) -> None:
        self._open: dict[Fanout, str] = {}
        self._stopped: HelixError | None = None

    def add(self, fanout: Fanout, owner: str) -> None:
        self._open[fanout] = owner
        if self._stopped is not None:
            fanout.interrupt(self._stopped)

    def discard(self, fanout: Fanout) -> None:
        self._open.pop(fanout, None)

    def revoke(self, owners: frozenset[str]) -> None:
        """Ends those of keys that were taken back."""
        for fanout, owner in self._open.items():
            if owner in owners:
                fanout.interrupt(revoked_key())

    def stop(self, error: HelixError) -> None:
        """Ends those open, and those still to come, with `error`."""
        self._stopped = error
        for fanout in self._open:
            fanout.interrupt(error)


def revoked_key() -> Unauthorized:
    return Unauthorized("this API key was revoked")


class GenerateEndpoint:
    def __init__(
        self,
        make: MakeDialect,
        service: Service,
        clock: Clock,
        open_requests: OpenRequests,
        doors: Doors,
        *,
        max_body_bytes: int,
        timings: Timings,
    ) -> None:
        self._make = make
        self._service = service
        self._clock = clock
        self._open_requests = open_requests
        self._doors = doors
        self._max_body_bytes = max_body_bytes
        self._timings = timings
        self._reading = asyncio.Semaphore(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        abort = scope.get("extensions", {}).get(ABORT_EXTENSION)
        writer = SseWriter(send, abort, self._timings.stall_s)
        try:
            answer = await self._serve(scope, receive, writer)
        except (ClientGone, ClientStalled):
            # The connection is closed already, or closes with this response never finished.
            answer = Response(status_code=499) if not writer.started else None
        except HelixError as e:
            answer = await _report(writer, e)
        except Exception as e:
            log.exception("a fault while serving %s", scope.get("path"), exc_info=e)
            answer = await _report_fault(writer)
        if answer is not None:
            await answer(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, writer: SseWriter) -> Response | None:
        """The answer; None when it was streamed."""
        headers = Headers(scope=scope)
        check_headers(headers)
        caller = caller_in(scope)
        lease = self._doors.quotas.enter(caller.owner, caller.limits)
        try:
            body = await read_body(headers, receive, self._max_body_bytes, self._timings.body_s)
            return await self._generate(await self._dialect(body), caller, lease, receive, writer)
        finally:
            lease.close()

    async def _generate(
        self, dialect: Dialect, caller: Caller, lease: Lease, receive: Receive, writer: SseWriter
    ) -> Response | None:
        self._check_serving()
        wish = dialect.request
        self._service.check_room(caller.owner, wish.priority, wish.deadline_s)
        generations = owned_by(caller.owner, await dialect.generations(self._service))
        if not self._doors.keys.stands(caller.owner):
            raise revoked_key()
        lease.begin(len(generations), _prompt_tokens(generations))
        fanout = Fanout(self._service, generations, _counted_by(lease))
        async with fanout, self._watched(fanout, receive, caller.owner):
            await fanout.accepted()
            created = int(self._clock.wall_s())
            dialect.begin(Stamp(fanout.request_name, created, dialect.request.model))
            if dialect.request.stream:
                await self._stream(fanout, dialect, writer)
                return None
            while not fanout.finished:
                for item in await fanout.batch():
                    dialect.keep(item)
            answer = msgspec.json.encode(dialect.answer())
        return Response(answer, headers=_name(fanout), media_type="application/json")

    async def _dialect(self, body: bytes) -> Dialect:
        """Parsed and checked: large bodies in a thread, one at a time. Of many that come at once
        the loop would otherwise do all in one turn."""
        if len(body) <= LARGE_BODY_BYTES:
            return self._make(parse_json(body), self._service)
        async with self._reading:
            return await asyncio.to_thread(lambda: self._make(parse_json(body), self._service))

    async def _stream(self, fanout: Fanout, dialect: Dialect, writer: SseWriter) -> None:
        items = await fanout.batch(self._timings.commit_after_s)
        await writer.start([(k.encode(), v.encode()) for k, v in _name(fanout).items()])
        await writer.write(_events(dialect.opening()))
        while True:
            await writer.write(_chunks(dialect, items))
            if fanout.finished:
                break
            items = await fanout.batch(self._timings.ping_s)
            if not items:
                await writer.write(PING)
        end = _events([dialect.usage_chunk()]) if dialect.request.include_usage else b""
        await writer.write(end + DONE, last=True)

    def _check_serving(self) -> None:
        """Before the work of tokenising: without layers nothing can be served at all."""
        standing = self._service.standing()
        if not standing.serving and not standing.recovering:
            raise NotServing(standing.reason, retry_after_s=RETRY_NOT_SERVING_S)

    @asynccontextmanager
    async def _watched(self, fanout: Fanout, receive: Receive, owner: str) -> AsyncIterator[None]:
        """Interrupts the request when its connection closes or the server stops."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            fanout.interrupt(ClientGone())

        task = asyncio.create_task(watch(), name=f"http-watch-{fanout.request_name}")
        self._open_requests.add(fanout, owner)
        try:
            yield
        finally:
            self._open_requests.discard(fanout)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _prompt_tokens(generations: Sequence[Generation]) -> int:
    """As in answers: each prompt once, however many choices share it."""
    prompts = {id(generation.prompt_ids): generation.prompt_ids for generation in generations}
    return sum(len(ids) for ids in prompts.values())


def _counted_by(lease: Lease) -> Callable[[Delta], None]:
    def count(delta: Delta) -> None:
        if delta.token is not None:
            lease.tokens(1)

    return count


def _chunks(dialect: Dialect, items: list[Item]) -> bytes:
    chunks = (dialect.chunk(item) for item in items)
    return _events([chunk for chunk in chunks if chunk is not None])


def _events(chunks: list[msgspec.Struct]) -> bytes:
    return b"".join(event(msgspec.json.encode(chunk)) for chunk in chunks)


def _name(fanout: Fanout) -> dict[str, str]:
    return {"x-request-id": fanout.request_name}


async def _report(writer: SseWriter, error: HelixError) -> Response | None:
    """An error as a response, or as the last event of a stream that has begun (no [DONE])."""
    if not writer.started:
        return error_response(error)
    await _last_event(writer, error_json(error))
    return None


async def _report_fault(writer: SseWriter) -> Response | None:
    response = plain_error_response(
        500, "an internal error; the router's log says more", "internal_error"
    )
    if not writer.started:
        return response
    await _last_event(writer, bytes(response.body))
    return None


async def _last_event(writer: SseWriter, body: bytes) -> None:
    try:
        await writer.write(event(body), last=True)
    except ClientStalled:
        log.info("a client that takes nothing was cut off before it could be told of an error")
