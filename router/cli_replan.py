"""`helix-mq router replan`: look for a better placement now, and move to it if that pays."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from helix_mq.cli.operate import API_KEY, TIMEOUT_S, URL, RouterHttp, run_with, watch


def replan(
    url: str = URL,
    api_key: str | None = API_KEY,
    timeout: float = TIMEOUT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Have a running router look for a better placement, and move to it if the gain pays."""

    async def work(http: RouterHttp) -> None:
        before = await http.post("/v1/helix/replan")

        def decided(state: dict[str, Any]) -> bool:
            return not state.get("doing") and state["searches"] > before["searches"]

        state = await watch(http, decided, timeout, lambda text: typer.echo(text, err=True))
        moved = state["epoch"] != before["epoch"]
        if as_json:
            result = {"moved": moved, "reason": state["verdict"], "nodes": state["nodes"]}
            typer.echo(json.dumps(result))
            return
        typer.echo(state["verdict"])
        if moved:
            for node in state["nodes"]:
                typer.echo(f"  {node['node']}: {node['layers'] or 'no layers'}")

    run_with(url, api_key, work)
