"""`helix-mq profile`: measure this machine's step times, print them, write the planner's CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(profile)


def profile(
    model: Annotated[Path, typer.Argument(help="Hugging Face folder or GGUF file.")],
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="Layers A up to, not including, B; default: some from the middle of the model.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1, max=1 << 24, help="Tokens that each decode has in the KV cache; default 870."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    attention: Annotated[str, typer.Option(help="auto, flash_attn, torch_flash or cpu.")] = "auto",
    quantise: Annotated[str, typer.Option(help="Weights' bits: none, int8 or int4.")] = "none",
    memory: Annotated[
        str | None, typer.Option(help="For weights and KV cache, e.g. 8GiB; default: most of it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the engine.")] = None,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Roughly how long to measure.")
    ] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="Write the tables: phase,batch,seconds_per_layer.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure even if a result of before is kept.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure seconds per layer by batch size, for a cluster file's `tables`."""
    from helix_mq.settings import load
    from nodes.profile_run import ProfileOptions, run
    from nodes.settings import NodeSettings

    settings = load(
        NodeSettings,
        None,
        {
            "name": "profile",
            "model": model,
            "device": device,
            "dtype": dtype,
            "quantise": quantise,
            "attention": attention,
            "memory": memory,
            "threads": threads,
        },
    )
    options = ProfileOptions(layers, context, max_seconds, out, fresh)
    typer.echo(run(settings, options, as_json=as_json))
