"""The requests that have not ended, as lines on a terminal. Pure."""

from __future__ import annotations

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from helix_mq.cli.show_cluster import seconds


class RouteHop(msgspec.Struct, frozen=True):
    node: str
    layers: str = ""


class RequestView(msgspec.Struct, frozen=True):
    id: str
    state: str
    age_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    max_tokens: int = 0
    route: tuple[RouteHop, ...] = ()
    since_token_s: float = 0.0
    reroutes: int = 0


class RequestsView(msgspec.Struct, frozen=True):
    total: int
    requests: tuple[RequestView, ...] = ()


def requests_screen(view: RequestsView) -> Group:
    """Oldest first, as the router gives them."""
    if not view.total:
        return Group(Text("No request is under way."))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for title, right in (
        ("request", False), ("state", False), ("age", True), ("prompt", True), ("output", True),
        ("of", True), ("this token", True), ("route", False),
    ):  # fmt: skip
        table.add_column(
            title,
            justify="right" if right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=16 if title == "request" else None,
        )
    for one in view.requests:
        route = " > ".join(hop.node for hop in one.route)
        if one.reroutes:
            route += f" (re-routed {one.reroutes}x)"
        table.add_row(
            Text(one.id),
            Text(one.state),
            seconds(one.age_s),
            f"{one.prompt_tokens:,}",
            f"{one.output_tokens:,}",
            f"{one.max_tokens:,}",
            seconds(one.since_token_s) if one.route else "-",
            Text(route or "waits for one"),
        )
    lines: list[RenderableType] = [table]
    if view.total > len(view.requests):
        lines.append(Text(f"and {view.total - len(view.requests):,} newer ones", "dim"))
    return Group(*lines)
