"""`helix-mq router replan`: look for a better placement now, and move to it if that pays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from helix_mq.cli.operate import API_KEY, TIMEOUT_S, URL, RouterHttp, run_with, watch


def replan(
    plan: Annotated[
        Path | None,
        typer.Option(help="A plan saved by `helix-mq plan --save`, to be made as it is."),
    ] = None,
    url: str = URL,
    api_key: str | None = API_KEY,
    timeout: float = TIMEOUT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Have a running router look for a better placement, and move to it if the gain pays.

    With --plan there is no search: the saved plan is made, whatever its gain.
    """
    slices = _slices(plan) if plan is not None else None

    async def work(http: RouterHttp) -> None:
        if slices is not None:
            before = await http.post("/v1/helix/placement", {"slices": slices})
        else:
            before = await http.post("/v1/helix/replan")

        def decided(state: dict[str, Any]) -> bool:
            searched = slices is not None or state["searches"] > before["searches"]
            return not state.get("doing") and searched

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


def _slices(path: Path) -> dict[str, tuple[int, int]]:
    from solver.plan_file import read_plan

    return {n: (r.first, r.end) for n, r in read_plan(path).placement.slices.items()}
