"""`python -m bench.engine_gpu`: as `helix-mq bench engine --suite gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.engine_gpu.cli import run_gpu
from helix_mq.errors import ConfigError


def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:N; cpu with --tiny.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="A trial of all parts, in seconds.")] = False,
    parts: Annotated[str | None, typer.Option(help="Some parts only, by commas.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the engine on a GPU, all of it, in under eight minutes."""
    try:
        run_gpu(device=device, tiny=tiny, parts=parts, out=out, as_json=as_json)
    except ConfigError as e:
        raise SystemExit(e.message) from None


if __name__ == "__main__":
    typer.run(main)
