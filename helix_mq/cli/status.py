"""`helix-mq status`: the cluster on one screen, in plain words; exits with 0 while it serves."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from helix_mq.cli.cluster_view import ClusterView, cluster_view
from helix_mq.cli.operate import API_KEY, URL, RouterHttp, run_with
from helix_mq.cli.show_cluster import (
    doing,
    happening_line,
    headline,
    hidden,
    latency,
    load,
    node_table,
    ordered,
    troubles,
    why,
)

LEAST_NODES = 5
SHOWN_TROUBLES = 4
SHOWN_HAPPENINGS = 4


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(
    url: str = URL,
    api_key: str | None = API_KEY,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the router says, as JSON.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="All nodes, however many lines that takes.")
    ] = False,
) -> None:
    """Show the cluster on one screen: does it serve, what limits it, how is each node.

    Exits with 0 while the cluster serves and with 1 while it does not.
    """
    serving = False

    async def work(http: RouterHttp) -> None:
        nonlocal serving
        state = await http.get("/v1/helix/cluster")
        view = cluster_view(state)
        serving = view.serving
        if as_json:
            typer.echo(json.dumps(state))
            return
        console = Console(highlight=False)
        # What goes into a file or a pipe has no screen to fit on.
        lines = None if every or not console.is_terminal else console.height - 1
        console.print(status_screen(view, console.width, lines))

    run_with(url, api_key, work)
    if not serving:
        raise typer.Exit(1)


def status_screen(view: ClusterView, width: int, lines: int | None) -> Group:
    """At most so many lines, as far as texts that wrap let it; None shows everything."""
    top: list[RenderableType] = [headline(view), why(view), load(view), latency(view)]
    under_way = doing(view)
    if under_way is not None:
        top.append(under_way)
    bad = troubles(view)
    many = len(bad) if lines is None else SHOWN_TROUBLES
    top += bad[:many]
    if len(bad) > many:
        top.append(Text(f"! and {len(bad) - many} more such troubles"))
    last = [happening_line(one) for one in view.happenings[-SHOWN_HAPPENINGS:]]
    nodes = ordered(view.nodes)
    shown = len(nodes)
    if lines is not None:
        # Blank lines before and after the table, its header, and one line for those left out.
        used = sum(_height(text, width) for text in (*top, *last) if isinstance(text, Text)) + 3
        shown = max(LEAST_NODES, lines - used)
        shown = len(nodes) if len(nodes) <= shown else max(LEAST_NODES, shown - 1)
    body: list[RenderableType] = [*top, Text("")]
    if nodes:
        body.append(node_table(view, nodes[:shown], width))
    else:
        body.append(Text("No node is here: start them with `helix-mq node`."))
    if len(nodes) > shown:
        body.append(hidden(nodes[shown:]))
    return Group(*body, Text(""), *last) if last else Group(*body)


def _height(text: Text, width: int) -> int:
    """Lines that it wraps to, or one fewer: words do not always break where lines end."""
    return max(1, -(-text.cell_len // width))
