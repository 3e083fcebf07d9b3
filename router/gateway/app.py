"""The HTTP application: routes, API keys, counting, errors in OpenAI's form."""

from __future__ import annotations

import logging

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from helix_mq.clock import Clock, SystemClock
from helix_mq.errors import UnknownModel
from router.gateway.auth import ApiKeys, RequireKey
from router.gateway.console import ConsolePages
from router.gateway.faults import error_response, plain_error_response
from router.gateway.generate import (
    Doors,
    GenerateEndpoint,
    OpenRequests,
    Timings,
    chat_dialect,
    completion_dialect,
)
from router.gateway.operate import OperatorPages
from router.gateway.quotas import Quotas
from router.gateway.replies import ModelCard, ModelList
from router.gateway.requests import RequestPages
from router.gateway.scrapes import Scrapes
from router.gateway.what_if import WhatIfPages
from router.journal_reader import JournalReader
from router.metrics import RouterMetrics
from router.operating import Operator
from router.preparing import check_model
from router.service import NodeStanding, Service
from router.settings import HttpSection

log = logging.getLogger(__name__)

GatewaySettings = HttpSection
DEFAULT_TIMINGS = Timings()

_RETRY_READY_S = "1"


def build_app(
    service: Service,
    settings: GatewaySettings,
    metrics: RouterMetrics,
    *,
    clock: Clock | None = None,
    open_requests: OpenRequests | None = None,
    timings: Timings = DEFAULT_TIMINGS,
    requests: JournalReader | None = None,
    operator: Operator | None = None,
    keys: ApiKeys | None = None,
) -> Starlette:
    """The ASGI app over `service`. Raises ConfigError for api_keys that are no digests, and for a
    keys_file that cannot be read. `keys`: those of the settings, where they are known already.

    `requests`: what answers /v1/helix/requests; without it there are none to fetch.
    """
    clock = clock or SystemClock()
    open_requests = open_requests if open_requests is not None else OpenRequests()
    pages = Pages(service, Scrapes(service, metrics, clock), int(clock.wall_s()))
    keys = keys if keys is not None else ApiKeys(settings.api_keys, settings.keys_file)
    keys.on_revoked(open_requests.revoke)
    kept = RequestPages(service, keys, requests)
    quotas = Quotas(clock)
    chat, completions = (
        GenerateEndpoint(
            make,
            service,
            clock,
            open_requests,
            Doors(keys, quotas),
            max_body_bytes=int(settings.max_body),
            timings=timings,
        )
        for make in (chat_dialect, completion_dialect)
    )
    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/helix/requests/{name}", kept.request),
            *(OperatorPages(operator).routes() if operator is not None else ()),
            *(WhatIfPages(operator.what_ifs).routes() if operator is not None else ()),
            *(ConsolePages().routes() if settings.console else ()),
            Route("/v1/models", pages.models),
            Route("/v1/models/{name:path}", pages.model),
            Route("/health", pages.health),
            Route("/ready", pages.ready),
            Route("/metrics", pages.metrics),
        ],
        middleware=[
            Middleware(CountResponses, metrics=metrics),
            Middleware(RequireKey, keys=keys),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _fault},
    )


class Pages:
    """Everything that only reads."""

    def __init__(self, service: Service, scrapes: Scrapes, created: int) -> None:
        self._service = service
        self._scrapes = scrapes
        self._created = created

    async def models(self, request: Request) -> Response:
        return _json(ModelList([self._card()]))

    async def model(self, request: Request) -> Response:
        try:
            check_model(self._service, request.path_params["name"])
        except UnknownModel as e:
            return error_response(e)
        return _json(self._card())

    async def health(self, request: Request) -> Response:
        """The process is alive; that it serves is /ready's to say."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def ready(self, request: Request) -> Response:
        standing = self._service.standing()
        nodes = {n.node: _node_text(n) for n in self._service.node_standings()}
        if standing.serving:
            return _json(Readiness("ready", "", nodes))
        body = Readiness("not ready", standing.reason, nodes)
        return _json(body, 503, {"retry-after": _RETRY_READY_S})

    async def metrics(self, request: Request) -> Response:
        text, content_type = await self._scrapes.text()
        return Response(text, headers={"content-type": content_type})

    def _card(self) -> ModelCard:
        return ModelCard(self._service.model_name, self._created, self._service.max_context)


def _node_text(node: NodeStanding) -> str:
    """`ready 0-9; suspect: not heard for 2.1 s`"""
    text = f"{node.state} {node.layers}".strip()
    return f"{text}; suspect: {node.suspect}" if node.suspect else text


class Readiness(msgspec.Struct, frozen=True):
    status: str
    reason: str
    """In words, empty when ready."""
    nodes: dict[str, str]
    """Each node's state and layers."""


class CountResponses:
    """ASGI middleware: counts responses by route and status."""

    def __init__(self, app: ASGIApp, metrics: RouterMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Only known routes become labels: paths are the clients' to invent.
                route = scope.get("route")
                label = route.path if isinstance(route, Route) else "other"
                self._metrics.responded(label, message["status"])
            await send(message)

        await self._app(scope, receive, counting if scope["type"] == "http" else send)


def _json(
    value: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    path = request.url.path[:200]
    allowed = (error.headers or {}).get("Allow", "another method")
    text = {
        404: f"there is nothing at {path}: check its spelling; requests go to "
        "/v1/chat/completions or /v1/completions",
        405: f"{request.method[:20]} is not possible on {path}: use {allowed}",
    }.get(error.status_code, error.detail)
    return plain_error_response(error.status_code, text, code, error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    log.error("a fault while serving %s", request.url.path[:200], exc_info=error)
    return plain_error_response(
        500, "an internal error; the router's log says more", "internal_error"
    )
