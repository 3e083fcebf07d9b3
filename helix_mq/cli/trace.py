"""`helix-mq trace REQUEST`: where a request's time went, hop by hop, by the nodes' measurements."""

from __future__ import annotations

import json
from typing import Annotated
from urllib.parse import quote

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from helix_mq.cli.cluster_view import read_as
from helix_mq.cli.operate import API_KEY, URL, RouterHttp, run_with
from helix_mq.cli.show_cluster import seconds
from helix_mq.cli.show_requests import RequestsView, requests_screen

WIDE = 100
"""Columns from which on there is room for layers and steps."""


class PhaseView(msgspec.Struct, frozen=True):
    steps: int = 0
    tokens: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    serialise_s: float = 0.0

    @property
    def spent_s(self) -> float:
        return self.queue_s + self.compute_s + self.serialise_s


class HopView(msgspec.Struct, frozen=True):
    node: str
    layers: str = ""
    attempt: int = 0
    known: bool = False
    prefill: PhaseView = PhaseView()
    decode: PhaseView = PhaseView()


class WireView(msgspec.Struct, frozen=True):
    sender: str
    receiver: str
    decode_s: float | None = None
    round_trip_s: float = 0.0


class TraceView(msgspec.Struct, frozen=True):
    id: str
    state: str
    outcome: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    attempts: int = 1
    queue_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0
    decodes: int = 0
    decode_s: float = 0.0
    hops: tuple[HopView, ...] = ()
    wires: tuple[WireView, ...] = ()
    wire_s: float | None = None
    wire_basis: str = ""
    missing: tuple[str, ...] = ()


def register(app: typer.Typer) -> None:
    app.command()(trace)


def trace(
    request: Annotated[
        str | None,
        typer.Argument(
            help="Its x-request-id, or the id of its answer. Without one, those under way."
        ),
    ] = None,
    url: str = URL,
    api_key: str | None = API_KEY,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the router says, as JSON.")
    ] = False,
) -> None:
    """Show where a request's time went: on each hop in the queue, computing and serialising, and
    on the wire between them. Works while it runs and for some time after.

    Without a REQUEST: the requests that have not ended, with their ids.
    """

    async def work(http: RouterHttp) -> None:
        path = "/v1/helix/requests"
        if request is not None:
            path += f"/{quote(request, safe='')}/trace"
        found = await http.get(path)
        if as_json:
            typer.echo(json.dumps(found))
            return
        console = Console(highlight=False)
        if request is None:
            console.print(requests_screen(read_as(found, RequestsView, path)))
        else:
            console.print(trace_screen(read_as(found, TraceView, path), console.width))

    run_with(url, api_key, work)


def trace_screen(view: TraceView, width: int) -> Group:
    lines: list[RenderableType] = [_headline(view), Text("")]
    lines.append(_hops(view, width))
    if view.wires:
        lines += [Text(""), *_wires(view)]
    for node in view.missing:
        lines.append(Text(f"! {node} has not told what it measured", "yellow"))
    return Group(*lines)


def _headline(view: TraceView) -> Text:
    ended = f" ({view.outcome})" if view.outcome else ""
    text = Text.assemble((f"Request {view.id}", "bold"), f": {view.state}{ended}")
    if view.prompt_tokens:
        text.append(
            f"; {view.prompt_tokens:,} prompt{_kept(view)} and {view.output_tokens:,} output tokens"
            f" in {seconds(view.total_s)}: waited {seconds(view.queue_s)} for a route"
        )
    if view.ttft_s:
        text.append(f", first token after {seconds(view.ttft_s)}")
    if view.decodes:
        each = seconds(view.decode_s / view.decodes)
        text.append(f", then {view.decodes:,} more, {each} each")
    if view.attempts > 1:
        times = "once" if view.attempts == 2 else f"{view.attempts - 1} times"
        text.append(f"; re-routed {times}")
    return text.append(".")


def _kept(view: TraceView) -> str:
    return f" ({view.cached_tokens:,} of them cached)" if view.cached_tokens else ""


def _hops(view: TraceView, width: int) -> Table:
    """Prompts in sum, decodes by token: what a client waits for; with room, in how many steps."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    wide = width >= WIDE
    parts = ("queue", "compute", "serialise")
    titles = ["steps", *parts] if wide else list(parts)
    table.add_column("hop", no_wrap=True)
    for phase in ("prompt", "token"):
        for at, title in enumerate(titles):
            full = title if at else f"{phase}: {title}"
            table.add_column(full, justify="right", no_wrap=True)
    for hop in view.hops:
        name = Text(f"{hop.node}, {hop.layers}" if wide else hop.node)
        if view.attempts > 1:
            name.append(f" (attempt {hop.attempt + 1})")
        if hop.attempt < view.attempts - 1:
            name.stylize("dim")
        table.add_row(name, *_phase(hop, hop.prefill, 1, wide), *_decodes(hop, wide))
    return table


def _decodes(hop: HopView, wide: bool) -> list[str]:
    return _phase(hop, hop.decode, hop.decode.steps, wide)


def _phase(hop: HopView, phase: PhaseView, among: int, wide: bool) -> list[str]:
    """Seconds of a phase divided `among` so many tokens."""
    if not hop.known or not among:
        return (["?"] if not hop.known else ["-"]) * (4 if wide else 3)
    times = (phase.queue_s, phase.compute_s, phase.serialise_s)
    return [*([f"{phase.steps:,}"] if wide else []), *(seconds(s / among) for s in times)]


def _wires(view: TraceView) -> list[Text]:
    if view.wire_s is None:
        return [Text(f"On the wire: {view.wire_basis}.")]
    lines = [Text(f"On the wire {seconds(view.wire_s)} per token: {view.wire_basis}.")]
    for wire in view.wires:
        ends = ("router" if x == "@router" else x for x in (wire.sender, wire.receiver))
        trip = f" (round trip {seconds(wire.round_trip_s)})" if wire.round_trip_s else ""
        lines.append(Text(f"  {' > '.join(ends)}: {seconds(wire.decode_s or 0.0)}{trip}"))
    return lines
