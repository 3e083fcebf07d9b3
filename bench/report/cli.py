"""`helix-mq bench report`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from helix_mq.errors import ConfigError


def report(
    files: Annotated[
        list[Path], typer.Argument(help="Result files, or folders whose .json files are results.")
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "helix_mq: measurements",
) -> None:
    """Put result files of any of these benchmarks on one HTML page, with tables and plots.

    The page needs nothing else: no script, no network. Files that are no results are named, and
    the others are there.
    """
    # Every `helix-mq` command reads this file.
    from bench.report.page import page
    from bench.report.reading import Result, files_of, read

    paths = files_of(files)
    results: list[Result] = []
    for path in paths:
        try:
            results.append(read(path))
        except ConfigError as e:
            typer.echo(f"left out: {e.message}", err=True)
    if not results:
        raise ConfigError("none of the files is a result: see the lines above")
    plots = importlib.util.find_spec("matplotlib") is not None
    with typer.progressbar(length=len(results), label="drawing") as bar:
        text = page(results, title=title, plots=plots, done=lambda _: bar.update(1))
    try:
        out.write_text(text, "utf-8")
    except OSError as e:
        raise ConfigError(f"{out}: cannot be written: {e.strerror or e}", param="out") from None
    typer.echo(f"{len(results)} results on one page: {out}")
