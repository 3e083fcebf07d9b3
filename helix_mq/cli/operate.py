"""What operators ask of a running router from the command line, over its HTTP endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import typer

from helix_mq.errors import ConnectionLost, HelixError, InvalidRequest, LocalError, Unauthorized

POLL_S = 0.25
DEFAULT_URL = "http://127.0.0.1:8000"

URL = typer.Option(DEFAULT_URL, "--url", help="The router's HTTP endpoint.", envvar="HELIX_MQ_URL")
API_KEY = typer.Option(
    None, "--api-key", help="An API key of the router.", envvar="HELIX_MQ_API_KEY"
)
TIMEOUT_S = typer.Option(600.0, "--timeout", help="Longest wait in seconds.", min=1.0)

State = dict[str, Any]


class RouterHttp:
    """One conversation with a router's operating pages; errors come out as ours, in words."""

    def __init__(self, url: str, api_key: str | None) -> None:
        # Every process builds the whole command tree; few ask a router for anything.
        import httpx

        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=30.0)
        except (httpx.InvalidURL, ValueError) as e:
            raise InvalidRequest(f"--url {url!r:.200}: {e}", param="url") from None
        self._url = url

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> State:
        return await self._ask("GET", path)

    async def post(self, path: str, body: State | None = None) -> State:
        return await self._ask("POST", path, body)

    async def _ask(self, method: str, path: str, send: State | None = None) -> State:
        import httpx

        try:
            answer = await self._http.request(method, path, json=send)
        except (httpx.TransportError, httpx.UnsupportedProtocol, httpx.InvalidURL) as e:
            raise ConnectionLost(
                f"no router answers at {self._url} ({e or type(e).__name__}): is it running, and "
                "is --url its HTTP address?"
            ) from None
        try:
            body = answer.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise LocalError(f"{self._url}{path} is no helix_mq router ({answer.status_code})")
        if answer.is_error:
            raise _error(answer.status_code, body)
        return body


def _error(status: int, body: State) -> HelixError:
    fields = body.get("error")
    text = fields.get("message") if isinstance(fields, dict) else None
    message = text if isinstance(text, str) else f"the router answered {status}"
    return Unauthorized(f"{message} (--api-key)") if status == 401 else InvalidRequest(message)


def run_with(url: str, api_key: str | None, work: Callable[[RouterHttp], Any]) -> None:
    """Runs `work(http)`, a coroutine, to its end."""

    async def conversation() -> None:
        http = RouterHttp(url, api_key)
        try:
            await work(http)
        finally:
            await http.close()

    asyncio.run(conversation())


async def watch(
    http: RouterHttp, done: Callable[[State], bool], timeout_s: float, say: Callable[[str], None]
) -> State:
    """The cluster's state once `done`; says what it waits for. LocalError after the time."""
    ends_s = time.monotonic() + timeout_s
    last = ""
    while True:
        state = await http.get("/v1/helix/cluster")
        if done(state):
            return state
        doing = str(state.get("doing") or "")
        if doing and doing != last:
            say(doing)
            last = doing
        if time.monotonic() > ends_s:
            raise LocalError(f"not done after {timeout_s:.0f} s; the router goes on: {doing}")
        await asyncio.sleep(POLL_S)
