"""What the benches on a real cluster share: options, a folder to work in, an end on Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

T = TypeVar("T")

MODEL_HELP = "Model folder or GGUF file; default: a tiny random one of 6 layers."
ModelOption = Annotated[Path | None, typer.Option(help=MODEL_HELP)]
FolderOption = Annotated[
    Path | None, typer.Option(help="Where logs and settings stay; default: thrown away.")
]
OutOption = Annotated[Path | None, typer.Option(help="Write the result there as JSON.")]

_INTERRUPTED = 130


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


async def in_folder(
    model: Path | None,
    folder: Path | None,
    stop: asyncio.Event,
    work: Callable[[Path, Path], Awaitable[T]],
) -> T:
    """What `work(model, folder)` gives; typer.Exit when `stop` comes first. Without a model a tiny
    random one is made, without a folder a temporary one."""
    from bench.chaos.tiny_model import write_tiny_model
    from helix_mq.models.resolve import resolve_model

    with tempfile.TemporaryDirectory(prefix="helix-mq-bench-") as temporary:
        place = folder or Path(temporary)
        path = resolve_model(model) if model is not None else write_tiny_model(place / "model")
        running = asyncio.ensure_future(work(path, place))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            running.cancel()
        stopping.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)
        if running.cancelled():
            raise typer.Exit(_INTERRUPTED)
        return running.result()
