"""The routes of the HTTP endpoint."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from helix_mq.errors import (
    CallerError,
    HelixError,
    InvalidRequest,
    LocalError,
    NotServing,
    Unauthorized,
    UnknownModel,
)
from router.gateway.answers import Envelope, answer_stream, answer_whole
from router.gateway.bodies import Body, ChatBody, CompletionBody, read_body
from router.gateway.errors import error_response
from router.gateway.parameters import wanted
from router.gateway.running import Choices
from router.gateway.shapes import ChatShape, CompletionShape
from router.metrics import RouterMetrics
from router.service import Service
from router.settings import HttpSection

log = logging.getLogger(__name__)

BODY_TIMEOUT_S = 30.0
"""A body that takes longer to arrive is somebody holding a connection open."""

MAX_SEQUENCES = 1024
"""Choices times prompts of one HTTP request."""

_B = TypeVar("_B", bound=Body)
Handler = Callable[[Request], Awaitable[Response]]


def build_gateway(service: Service, settings: HttpSection, metrics: RouterMetrics) -> Starlette:
    """The ASGI app; every answer, refusals included, has OpenAI's form."""
    gateway = _Gateway(service, settings, metrics)
    guarded = gateway.guarded
    return Starlette(
        routes=[
            Route("/health", gateway.health),
            Route("/ready", gateway.ready),
            Route("/metrics", gateway.metrics),
            Route("/v1/models", guarded(gateway.models)),
            Route("/v1/models/{name:path}", guarded(gateway.model)),
            Route("/v1/chat/completions", guarded(gateway.chat), methods=["POST"]),
            Route("/v1/completions", guarded(gateway.completions), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _http_exception, Exception: _fault},
    )


class _Gateway:
    def __init__(self, service: Service, settings: HttpSection, metrics: RouterMetrics) -> None:
        self._service = service
        self._settings = settings
        self._metrics = metrics
        self._started = int(time.time())

    def guarded(self, handler: Handler) -> Handler:
        """Checks the API key and turns errors into answers."""

        async def run(request: Request) -> Response:
            try:
                self._check_key(request)
                return await handler(request)
            except HelixError as e:
                return error_response(e)

        return run

    def _check_key(self, request: Request) -> None:
        if not self._settings.api_keys:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        known = [hmac.compare_digest(digest, k.lower()) for k in self._settings.api_keys]
        if scheme.lower() != "bearer" or not any(known):
            raise Unauthorized("give a valid API key: Authorization: Bearer <key>")

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        status = self._service.status()
        body = {
            "status": "ready" if status.serving else "not ready",
            "reason": status.reason,
            "nodes": {n.node: f"{n.state} {n.layers}".strip() for n in status.nodes},
        }
        return JSONResponse(body, status_code=200 if status.serving else 503)

    async def metrics(self, request: Request) -> Response:
        text, content_type = self._metrics.render(self._service.status())
        return Response(text, headers={"Content-Type": content_type})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._service.model_name:
            raise UnknownModel(f"model {name[:100]!r} is not served here", param="model")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, object]:
        return {
            "id": self._service.model_name,
            "object": "model",
            "created": self._started,
            "owned_by": "helix_mq",
            "max_model_len": self._service.max_context,
        }

    async def chat(self, request: Request) -> Response:
        body = await self._read(request, ChatBody)
        asked = wanted(self._service, body)
        self._check_serving()
        turns = [(m.role, m.text(i)) for i, m in enumerate(body.messages)]
        prompt = await self._service.tokenize_chat(turns)
        generations = [asked.generation(self._service, prompt, i) for i in range(asked.choices)]
        usage = body.stream_options is not None and body.stream_options.include_usage
        envelope = Envelope.new(
            ChatShape(self._service.tokenizer), self._service.model_name, 1, usage
        )
        choices = Choices(self._service, generations)
        if body.stream:
            return answer_stream(choices, envelope)
        return await answer_whole(request, choices, envelope)

    async def completions(self, request: Request) -> Response:
        body = await self._read(request, CompletionBody)
        asked = wanted(self._service, body)
        self._check_serving()
        prompts = [await self._prompt_ids(p) for p in body.prompts()]
        if len(prompts) * asked.choices > MAX_SEQUENCES:
            raise InvalidRequest(
                f"{len(prompts)} prompts with n={asked.choices} are more than {MAX_SEQUENCES} "
                "sequences in one request",
                param="n",
            )
        generations = [
            asked.generation(self._service, prompt, choice)
            for prompt in prompts
            for choice in range(asked.choices)
        ]
        echoes = [
            self._service.tokenizer.decode(g.prompt_ids, skip_special_tokens=False)
            if body.echo
            else ""
            for g in generations
        ]
        usage = body.stream_options is not None and body.stream_options.include_usage
        shape = CompletionShape(self._service.tokenizer, echoes)
        envelope = Envelope.new(shape, self._service.model_name, len(prompts), usage)
        choices = Choices(self._service, generations)
        if body.stream:
            return answer_stream(choices, envelope)
        return await answer_whole(request, choices, envelope)

    def _check_serving(self) -> None:
        """Before the work of tokenising: without layers nothing can be served at all."""
        status = self._service.status()
        if not status.serving and not status.recovering:
            raise NotServing(status.reason, retry_after_s=5.0)

    async def _read(self, request: Request, kind: type[_B]) -> _B:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await read_body(request, kind, int(self._settings.max_body))
        except TimeoutError:
            raise _SlowBody(f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None

    async def _prompt_ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return await self._service.tokenize(prompt, special=True)
        vocabulary = self._service.vocab_size
        for token in prompt:
            if not 0 <= token < vocabulary:
                raise InvalidRequest(
                    f"prompt: token id {token} is outside the vocabulary of {vocabulary}",
                    param="prompt",
                )
        return prompt


class _SlowBody(CallerError):
    code = "request_timeout"
    http_status = 408


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, wrong method) in the same form."""
    assert isinstance(error, HTTPException)
    refusal = _refusals.get(error.status_code, CallerError)(
        f"{request.method} {request.url.path}: {error.detail}"
    )
    response = error_response(refusal)
    response.headers.update(error.headers or {})
    return response


class _NotFound(CallerError):
    code = "not_found"
    http_status = 404


class _WrongMethod(CallerError):
    code = "method_not_allowed"
    http_status = 405


_refusals: dict[int, type[CallerError]] = {404: _NotFound, 405: _WrongMethod}


async def _fault(request: Request, error: Exception) -> Response:
    """A bug of ours: logged whole, answered in one sentence."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(LocalError("an internal error; the router's log has the details"))
