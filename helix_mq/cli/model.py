"""`helix-mq model inspect`: what a model folder or GGUF file holds and what its slices weigh."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from helix_mq.errors import ConfigError
from helix_mq.layers import MAX_LAYERS, LayerRange
from helix_mq.models.config import WeightsDtype
from helix_mq.models.report import ModelReport, inspect_model


def register(app: typer.Typer) -> None:
    """Adds the `model` commands to the command line."""
    group = typer.Typer(name="model", help="Look into models.", no_args_is_help=True)
    group.command()(inspect)
    group.command()(demo)
    app.add_typer(group)


def inspect(
    path: Annotated[str, typer.Argument(help="Hugging Face folder or GGUF file.")],
    slice_: Annotated[
        str | None,
        typer.Option("--slice", metavar="A:B", help="Layers A up to, not including, B."),
    ] = None,
    dtype: Annotated[
        WeightsDtype | None, typer.Option(help="Sizes in this format, not the stored one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")] = False,
) -> None:
    """Print a model's shape and the bytes of its layers, slices and KV cache."""
    layers = parse_slice(slice_) if slice_ is not None else None
    # Converting a GGUF file needs more imports than everything else here.
    from helix_mq.models.resolve import resolve_model

    report = inspect_model(resolve_model(Path(path)), layers, dtype)
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else "\n".join(lines(report)))


def demo() -> None:
    """Print the path of the small model that `helix-mq demo` serves."""
    from helix_mq.models.resolve import find_demo_gguf

    typer.echo(find_demo_gguf())


def parse_slice(text: str) -> LayerRange:
    """`A:B` as layers; ConfigError in words for anything else."""
    match = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text, re.ASCII)
    if match is None or not int(match[1]) < int(match[2]) <= MAX_LAYERS:
        raise ConfigError(
            f"--slice {text!r} is not a range of layers; use A:B for layers A up to, not "
            "including, B, for example 0:8",
            param="slice",
        )
    return LayerRange(int(match[1]), int(match[2]))


def lines(r: ModelReport) -> list[str]:
    """The report for people."""
    tied = ", tied to the embedding" if r.tied_embeddings else ""
    window = f", sliding window {r.sliding_window}" if r.sliding_window else ""
    part = LayerRange(r.slice_first, r.slice_end)
    on_disk = _size(r.disk_bytes) if r.disk_bytes is not None else f"incomplete: {r.disk_problem}"
    return [
        f"model        {r.folder}",
        f"family       {r.family}, {r.parameters / 1e6:,.1f} M parameters, stored in "
        f"{r.stored_dtype}",
        f"layers       {r.num_layers} of width {r.hidden_size}, MLP {r.intermediate_size}",
        f"attention    {r.num_heads} heads on {r.num_kv_heads} KV heads of {r.head_dim}{window}",
        f"vocabulary   {r.vocab_size:,} tokens, context {r.max_context:,}",
        f"in {r.dtype}:",
        f"  layer      {_size(r.layer_bytes)}",
        f"  embedding  {_size(r.embedding_bytes)}",
        f"  head       {_size(r.head_bytes)}{tied}",
        f"  model      {_size(r.model_bytes)}",
        f"  KV cache   {_size(r.kv_bytes_per_token_per_layer)} per token and layer, "
        f"{_size(r.kv_bytes_per_token)} per token",
        f"  link       {_size(r.activation_bytes_per_token)} per token between two nodes",
        f"slice        {part}: {_size(r.slice_bytes)} of weights, "
        f"{_size(r.slice_kv_bytes_per_token)} of KV cache per token",
        f"on disk      {on_disk}",
    ]


def _size(count: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
