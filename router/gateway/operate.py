"""The operator's pages: /v1/helix/cluster, .../nodes/NAME/drain, .../replan."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.gateway.faults import error_response
from router.operating import Operator, UnknownNode


class OperatorPages:
    """Who may send requests may do these, too: API keys guard all of /v1."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    def routes(self) -> list[Route]:
        return [
            Route("/v1/helix/cluster", self.cluster),
            Route("/v1/helix/nodes/{name}/drain", self.drain, methods=["POST"]),
            Route("/v1/helix/replan", self.replan, methods=["POST"]),
        ]

    async def cluster(self, request: Request) -> Response:
        return self._picture()

    async def drain(self, request: Request) -> Response:
        try:
            self._operator.drain(request.path_params["name"])
        except UnknownNode as e:
            return error_response(e)
        return self._picture(202)

    async def replan(self, request: Request) -> Response:
        # Before: an answer may come at once, and who asked compares with this.
        before = self._picture(202)
        self._operator.replan()
        return before

    def _picture(self, status: int = 200) -> Response:
        body = msgspec.json.encode(self._operator.picture())
        return Response(body, status, media_type="application/json")
