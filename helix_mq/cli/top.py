"""`helix-mq top`: the cluster, live. The frame is a pure function of the view and the screen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from helix_mq.cli.cluster_view import ClusterView, cluster_view
from helix_mq.cli.operate import API_KEY, URL, RouterHttp, run_with
from helix_mq.cli.show_cluster import (
    happening_line,
    headline,
    hidden,
    latency,
    link_lines,
    load,
    node_table,
    ordered,
    rule,
    troubles,
    why,
)
from helix_mq.errors import HelixError

LEAST_WIDTH, LEAST_HEIGHT = 60, 12
"""On anything smaller, lines are cut off."""
_WORST_TROUBLES = 3


def register(app: typer.Typer) -> None:
    app.command()(top)


def top(
    url: str = URL,
    api_key: str | None = API_KEY,
    every: Annotated[
        float, typer.Option(help="Seconds between two looks.", min=0.2, max=60.0)
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Watch the cluster: nodes, layers, KV, step times, flow against capacity, queues.

    q or Ctrl-C ends it; j and k (or space and b) move down and up where there are more nodes than
    lines.
    """
    console = Console(highlight=False)

    async def work(http: RouterHttp) -> None:
        if once or not console.is_terminal:
            view = cluster_view(await http.get("/v1/helix/cluster"))
            console.print(frame(view, console.width, console.height - 1))
        else:
            await _watch(http, console, every)

    # Where nobody reads on, as after `| head`.
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        run_with(url, api_key, work)


def frame(view: ClusterView, width: int, height: int, *, skip: int = 0, note: str = "") -> Group:
    """What the screen shows: never wider than `width`, never more than `height` lines.

    Troubles and the nodes come first; links and what happened lately get what is left. `skip`
    leaves out so many nodes from above.
    """
    width, height = max(width, LEAST_WIDTH), max(height, LEAST_HEIGHT)
    lines: list[RenderableType] = [
        _line(headline(view)),
        _wrapped(why(view), width, 2),
        _line(load(view)),
        _line(latency(view)),
    ]
    used = len(lines) + _height(why(view), width, 2) - 1
    if view.doing or note:
        lines.append(_line(Text(note or f"Under way: {view.doing}.", "yellow")))
        used += 1
    bad = troubles(view)
    shown_bad = bad[:_WORST_TROUBLES]
    if len(bad) > _WORST_TROUBLES:
        more = len(bad) - _WORST_TROUBLES + 1
        shown_bad = [*bad[: _WORST_TROUBLES - 1], Text(f"! and {more} more such troubles")]
    lines += [_line(text) for text in shown_bad]
    used += len(shown_bad)

    nodes = ordered(view.nodes)
    skip = max(0, min(skip, len(nodes) - 1))
    # The table has a header; a line below it says how many nodes there was no room for.
    room = height - used - 1
    fits = skip == 0 and len(nodes) <= room
    shown = nodes[skip : skip + (room if fits else room - 1)]
    if not nodes:
        lines.append(Text("No node is here: start them with `helix-mq node`."))
        return Group(*lines)
    lines.append(node_table(view, shown, width))
    used += 1 + len(shown)
    if not fits:
        lines.append(_line(hidden([*nodes[:skip], *nodes[skip + len(shown) :]])))
        used += 1
    lines += _below(view, width, height - used)
    return Group(*lines)


def _below(view: ClusterView, width: int, left: int) -> Iterator[Text]:
    """Links with bytes on them, and what happened lately, in what is left of the screen."""
    busy = link_lines([x for x in view.links if x.flow_tokens_per_s or x.bytes_per_s])
    # With next to no room, what happened says more than how busy links are.
    for_links = min(len(busy) + 1, (left - 2) // 2) if busy else 0
    if for_links >= 2:
        yield rule("links", width)
        yield from (_line(text) for text in busy[: for_links - 1])
        left -= for_links
    last = view.happenings[-(left - 1) :] if left >= 2 else ()
    if last:
        yield rule("lately", width)
        yield from (_line(happening_line(one)) for one in last)


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _wrapped(text: Text, width: int, most: int) -> Text:
    """In `most` lines, the last one cut off."""
    lines = text.wrap(Console(width=width), width)
    if len(lines) <= most:
        return text
    kept = Text("\n").join(lines[:most])
    kept.rstrip()
    kept.right_crop(1)
    return kept.append("…")


def _height(text: Text, width: int, most: int) -> int:
    return min(most, len(text.wrap(Console(width=width), width)))


# -- live -----------------------------------------------------------------------


async def _watch(http: RouterHttp, console: Console, every_s: float) -> None:
    keys: asyncio.Queue[str] = asyncio.Queue()
    view = cluster_view(await http.get("/v1/helix/cluster"))
    skip, note = 0, ""
    with _keys(keys), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            page = frame(view, console.width, console.height, skip=skip, note=note)
            live.update(page, refresh=True)
            try:
                async with asyncio.timeout(every_s):
                    key = await keys.get()
            except TimeoutError:
                view, note = await _again(http, view)
                continue
            if key in "qQ\x03\x04":
                return
            step = {"j": 1, "k": -1, " ": 10, "b": -10}.get(key, 0)
            skip = max(0, min(skip + step, len(view.nodes) - 1))


async def _again(http: RouterHttp, before: ClusterView) -> tuple[ClusterView, str]:
    """The cluster now; the last one with a note while the router does not answer."""
    try:
        return cluster_view(await http.get("/v1/helix/cluster")), ""
    except HelixError as e:
        return before, f"As of a while ago: {e}"


@contextlib.contextmanager
def _keys(into: asyncio.Queue[str]) -> Iterator[None]:
    """Single keys from the terminal, without waiting for a line; nothing where there is none."""
    if not sys.stdin.isatty():
        yield
        return
    fd, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(fd)

    def read() -> None:
        pressed = os.read(fd, 64)
        if not pressed:
            # The terminal is gone, and would be readable for ever.
            loop.remove_reader(fd)
            into.put_nowait("q")
        for key in pressed.decode("ascii", "replace"):
            into.put_nowait(key)

    tty.setcbreak(fd)
    loop.add_reader(fd, read)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
