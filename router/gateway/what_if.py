"""GET and POST /v1/helix/whatif: what there is to ask for, and what one more GPU would bring."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from helix_mq.errors import HelixError, InvalidRequest
from router.gateway.body import check_headers, read_body
from router.gateway.faults import error_response
from router.what_if_desk import WhatIfDesk

MAX_BODY_BYTES = 4096

_Text = Annotated[str, msgspec.Meta(max_length=64)]


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gpu: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    region: _Text = ""


class WhatIfPages:
    def __init__(self, desk: WhatIfDesk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        return [
            Route("/v1/helix/whatif", self.choices, methods=["GET"]),
            Route("/v1/helix/whatif", self.answer, methods=["POST"]),
        ]

    async def choices(self, request: Request) -> Response:
        return _json(self._desk.choices())

    async def answer(self, request: Request) -> Response:
        try:
            check_headers(request.headers)
            body = await read_body(request.headers, request.receive, MAX_BODY_BYTES)
            asked = _asked(body)
            return _json(await self._desk.answer(asked.gpu, asked.region))
        except HelixError as e:
            return error_response(e)


def _asked(body: bytes) -> _Asked:
    try:
        return msgspec.json.decode(body, type=_Asked)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise InvalidRequest(
            f'the body is no question ({e}): send {{"gpu": "L4"}}, or {{"gpu": "L4", '
            '"region": "eu-west"} where nodes name regions'
        ) from None


def _json(value: msgspec.Struct) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(msgspec.json.encode(value), 200, headers, "application/json")
