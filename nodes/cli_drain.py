"""`helix-mq node drain NAME`: let a node leave without a failed request."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from helix_mq.cli.operate import API_KEY, TIMEOUT_S, URL, RouterHttp, run_with, watch
from helix_mq.errors import InvalidRequest


def drain(
    name: Annotated[str, typer.Argument(help="The node's name in the cluster.")],
    url: str = URL,
    api_key: str | None = API_KEY,
    timeout: float = TIMEOUT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Move a node's layers and requests to others, then have it leave and its process end.

    Where no other nodes can hold its layers it stays, and the reason is said.
    """

    async def work(http: RouterHttp) -> None:
        await http.post(f"/v1/helix/nodes/{quote(name, safe='')}/drain")

        def decided(state: dict[str, Any]) -> bool:
            node = _node(state, name)
            return node is None or not node.get("leaving")

        state = await watch(http, decided, timeout, lambda text: typer.echo(text, err=True))
        left = _node(state, name) is None
        if as_json:
            typer.echo(json.dumps({"node": name, "left": left, "reason": state.get("verdict")}))
        elif left:
            typer.echo(f"{name} has left")
        if not left:
            raise InvalidRequest(f"{name} stays: {state.get('verdict')}", param="name")

    run_with(url, api_key, work)


def _node(state: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((n for n in state.get("nodes", []) if n.get("node") == name), None)
