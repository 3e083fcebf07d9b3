"""The operator's pages: /v1/helix/cluster, .../requests, .../replan, .../placement and draining."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from helix_mq.errors import HelixError, InvalidRequest
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from router.gateway.body import read_body
from router.gateway.faults import error_response
from router.operating import Operator

MAX_BODY_BYTES = 1 << 20

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Layer = Annotated[int, msgspec.Meta(ge=0, le=1024)]


class _Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`{"slices": {"alpha": [0, 10], "beta": [10, 30]}}`: half-open ranges."""

    slices: Annotated[dict[_Name, tuple[_Layer, _Layer]], msgspec.Meta(min_length=1)]


class OperatorPages:
    """Who may do what here is auth's to say: see `needs_operator`."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    def routes(self) -> list[Route]:
        return [
            Route("/v1/helix/cluster", self.cluster),
            Route("/v1/helix/requests", self.requests),
            Route("/v1/helix/requests/{name}/trace", self.trace),
            Route("/v1/helix/nodes/{name}/drain", self.drain, methods=["POST"]),
            Route("/v1/helix/replan", self.replan, methods=["POST"]),
            Route("/v1/helix/placement", self.place, methods=["POST"]),
        ]

    async def cluster(self, request: Request) -> Response:
        return self._picture()

    async def requests(self, request: Request) -> Response:
        body = msgspec.json.encode(self._operator.requests_picture())
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    async def trace(self, request: Request) -> Response:
        try:
            found = await self._operator.trace(request.path_params["name"])
        except HelixError as e:
            return error_response(e)
        body = msgspec.json.encode(found)
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    async def drain(self, request: Request) -> Response:
        try:
            self._operator.drain(request.path_params["name"])
        except HelixError as e:
            return error_response(e)
        return self._picture(202)

    async def replan(self, request: Request) -> Response:
        # Before: an answer may come at once, and who asked compares with this.
        before = self._picture(202)
        self._operator.replan()
        return before

    async def place(self, request: Request) -> Response:
        before = self._picture(202)
        try:
            body = await read_body(request.headers, request.receive, MAX_BODY_BYTES)
            self._operator.place(_slices(body))
        except HelixError as e:
            return error_response(e)
        return before

    def _picture(self, status: int = 200) -> Response:
        body = msgspec.json.encode(self._operator.picture())
        return Response(body, status, media_type="application/json")


def _slices(body: bytes) -> dict[NodeId, LayerRange]:
    try:
        wanted = msgspec.json.decode(body, type=_Wanted)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise InvalidRequest(
            f'the body is no placement ({e}): send {{"slices": {{"NODE": [FIRST, END], ...}}}}',
            param="slices",
        ) from None
    try:
        return {NodeId(n): LayerRange(*ends) for n, ends in wanted.slices.items()}
    except ValueError as e:
        raise InvalidRequest(f"slices: {e}", param="slices") from None
